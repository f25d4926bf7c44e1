// Which keys a query may see: `Mask::visible` over arrays with a number per token.
//
// `rules` says what a mask looks at and is known when this is compiled, so that nothing is left of the
// rest; numbers such as a window come with the launch, so that they need no kernel of their own.
//
// The tests compile this file as C, too, and compare it with the definition pair by pair.

#ifndef ON_CARD
#define ON_CARD __device__ __forceinline__
#define READ(p) __ldg(p)
#endif

// As rules.rs has them.
#define CAUSAL 1      // keys at later positions are hidden
#define WINDOW 2      // so are keys too far back that are no sinks
#define SINKS 4       // there are sinks: the first positions
#define LABELS 8      // documents, padding and groups: labels must be equal
#define ANCHOR 16     // a key of that label is seen from all documents
#define POSITIONS 32  // positions are given per token; else they follow from indices
#define STRIDE 64     // near blocks of positions, and those in a head's column
#define LIST 128      // blocks of tokens that were chosen
#define BLOCKS 256    // stride and list say the same of all pairs of 64 queries and 64 keys, from multiples on
#define SMALL 512     // there are blocks of 64 keys, or of odd multiples; tiles of keys are then as small
// (1024: the same of queries, which then go through their keys apart; see source.rs)

// What is asked of every pair.
#define OF_PAIRS(rules) ((rules) & BLOCKS ? (rules) & ~(STRIDE | LIST) : (rules))

// As lists.rs and hidden.rs have them, and a tile without what is said of it.
#define LATER (1 << 30)
#define HIDDEN_AT 26
#define tile_of(entry) ((entry) & ((1 << HIDDEN_AT) - 1))

#define ANCHOR_LABEL 0x7fffffff
// A head that sees the blocks of all columns.
#define ALL_COLUMNS (-0x7fffffff - 1)

// A mask's numbers of tokens, all in one array, and where in it they begin. Rows of tokens are rounded up
// to whole tiles, with padding behind the last.
struct Side {
  const int* numbers;
  // A list of tiles per row, class of heads and tile: [B, classes, tiles] + 1 starts, and the tiles in
  // their order, negative where a part is seen, with LATER where later keys alone are hidden, else with a bit
  // for each of its blocks that stride and list hide.
  const int* starts;
  const int* tiles;
  int heads;     // [H, 4]: of every query head its class, its labels, its column
  int q_label;   // [labels, B, tall]
  int k_label;   // [labels, B, wide]
  int q_pos;     // [B, tall]
  int k_pos;     // [B, wide]
  // Those of strides and lists where tiles do not say enough (see BLOCKS).
  int q_far;     // [B, tall]: the last block that is not near
  int k_block;   // [B, wide]
  int k_column;  // [B, wide]
  int k_listed;  // [wide]: blocks of the list
  int bits;      // [B, H, blocks of queries, words]
  int classes;
  // Position of a token with index 0.
  int q_start, k_start;
  int window, sinks;
  int list_queries, list_rows, list_words;
  int batch, all_heads, queries, keys, tall, wide;
};

// The same for one row and head.
struct View { int q_label, k_label, q_pos, k_pos, q_far, k_block, k_column, bits, column; };

struct Query { int at, label, pos, far, line; };
struct Key { int at, label, pos, block, column, listed; };
struct Two { int x, y; };

ON_CARD struct View view_of(const int rules, const struct Side* side, int b, int h) {
  struct View v = {0, 0, 0, 0, 0, 0, 0, 0, ALL_COLUMNS};
  if (rules & LABELS) {
    int row = READ(side->numbers + side->heads + 4 * h + 1) * side->batch + b;
    v.q_label = side->q_label + row * side->tall;
    v.k_label = side->k_label + row * side->wide;
  }
  if (rules & POSITIONS) {
    v.q_pos = side->q_pos + b * side->tall;
    v.k_pos = side->k_pos + b * side->wide;
  }
  if (rules & STRIDE) {
    v.q_far = side->q_far + b * side->tall;
    v.k_block = side->k_block + b * side->wide;
    v.k_column = side->k_column + b * side->wide;
    v.column = READ(side->numbers + side->heads + 4 * h + 2);
  }
  if (rules & LIST) v.bits = side->bits + (b * side->all_heads + h) * side->list_rows * side->list_words;
  return v;
}

// Two neighbours, the first even.
ON_CARD struct Two two(const struct Side* side, int at) {
  const int* of = side->numbers + at;
#ifdef __CUDACC__
  int2 x = __ldg((const int2*)of);
  struct Two pair = {x.x, x.y};
#else
  struct Two pair = {of[0], of[1]};
#endif
  return pair;
}

ON_CARD void queries_at(const int rules, const struct Side* side, const struct View* v, int at, struct Query* first,
                        struct Query* second) {
  struct Two label = {0, 0}, far = {0, 0}, pos = {at + side->q_start, at + 1 + side->q_start};
  if (rules & LABELS) label = two(side, v->q_label + at);
  if (rules & POSITIONS) pos = two(side, v->q_pos + at);
  if (rules & STRIDE) far = two(side, v->q_far + at);
  struct Query a = {at, label.x, pos.x, far.x, 0}, b = {at + 1, label.y, pos.y, far.y, 0};
  if (rules & LIST) {
    int last = side->queries - 1;
    a.line = (a.at < last ? a.at : last) / side->list_queries * side->list_words;
    b.line = (b.at < last ? b.at : last) / side->list_queries * side->list_words;
  }
  *first = a;
  *second = b;
}

ON_CARD void keys_at(const int rules, const struct Side* side, const struct View* v, int at, struct Key* first,
                     struct Key* second) {
  struct Two label = {0, 0}, block = {0, 0}, column = {0, 0}, listed = {0, 0};
  struct Two pos = {at + side->k_start, at + 1 + side->k_start};
  if (rules & LABELS) label = two(side, v->k_label + at);
  if (rules & POSITIONS) pos = two(side, v->k_pos + at);
  if (rules & STRIDE) {
    block = two(side, v->k_block + at);
    column = two(side, v->k_column + at);
  }
  if (rules & LIST) listed = two(side, side->k_listed + at);
  struct Key a = {at, label.x, pos.x, block.x, column.x, listed.x};
  struct Key b = {at + 1, label.y, pos.y, block.y, column.y, listed.y};
  *first = a;
  *second = b;
}

// One of the two that lie at an even index.
ON_CARD struct Query query_at(const int rules, const struct Side* side, const struct View* v, int at) {
  struct Query a, b;
  queries_at(rules, side, v, at & ~1, &a, &b);
  return at & 1 ? b : a;
}
ON_CARD struct Key key_at(const int rules, const struct Side* side, const struct View* v, int at) {
  struct Key a, b;
  keys_at(rules, side, v, at & ~1, &a, &b);
  return at & 1 ? b : a;
}

// What a stride and a list say; sinks are seen in spite of a stride.
ON_CARD int strided(const struct View* v, struct Query q, struct Key k) {
  return (v->column == ALL_COLUMNS) | (k.block > q.far) | (k.column == v->column);
}
ON_CARD int listed(const struct Side* side, const struct View* v, struct Query q, struct Key k) {
  return (READ(side->numbers + v->bits + q.line + (k.listed >> 5)) >> (k.listed & 31)) & 1;
}

ON_CARD int seen(const int rules, const struct Side* side, const struct View* v, struct Query q, struct Key k) {
  // Behind the last key there are zeros, which would count.
  int yes = k.at < side->keys;
  int sink = (rules & SINKS) && k.pos < side->sinks;
  if (rules & LABELS) {
    int equal = q.label == k.label;
    if (rules & ANCHOR) equal |= (k.label == ANCHOR_LABEL) & (q.label >= 0);
    yes &= equal;
  }
  if (rules & CAUSAL) yes &= k.pos <= q.pos;
  if (rules & WINDOW) yes &= (q.pos - k.pos < side->window) | sink;
  if (rules & STRIDE) yes &= strided(v, q, k) | sink;
  if (rules & LIST) yes &= listed(side, v, q, k);
  return yes;
}
