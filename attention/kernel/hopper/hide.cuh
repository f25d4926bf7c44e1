// Hides what may not be seen of a tile of scores, as accumulators have it: 4 numbers per 8 columns, of two
// rows (this thread's and the one eight further) and two neighbouring columns. Behind walk.cuh or lists.cuh, which say how
// large tiles are.

// Columns that are looked at together: the fewer, the more is read for each.
#define AT_ONCE(rules) ((rules) & (STRIDE | LIST) ? 1 : (rules) & (LABELS | POSITIONS) ? 2 : 4)
// Masks with a stride and a list look at so much that wide heads leave room for one query at a time; a third warpgroup
// that computes leaves no more room for labels.
#define ONE_BY_ONE(rules) (COMPUTING == 3 ? (rules) & LABELS : HEAD > 128 && ((rules) & (STRIDE | LIST)) == (STRIDE | LIST))

// Whether stride and list hide the block of 64 queries and 64 keys around a pair of a tile, of which an entry says so.
__device__ __forceinline__ bool is_hidden(int entry, int token, int key) {
  return entry >> (HIDDEN_AT + 2 * (token / 64 % (TALL / 64)) + key / 64 % (TILE_KEYS / 64)) & 1;
}

// Whether all pairs of some queries, from one on, and some keys, up to one, are seen in blocks that are: where later
// keys alone are hidden besides.
template<int ALL> __device__ __forceinline__ bool whole(const Side* side, int first, int last) {
  bool seen = last < side->keys && last <= first + side->q_start - side->k_start;
  return (ALL & BLOCKS) && (OF_PAIRS(ALL) & ~(BLOCKS | SMALL)) == CAUSAL && seen;
}

// Keys are columns: this thread has queries `token` and `token + 8`, and keys `key + 8j` and those behind.
template<int RULES> __device__ __forceinline__ int four_of_keys(const Side* side, const View* view, Query first, Query second, int key) {
  Key left, right;
  keys_at(RULES, side, view, key, &left, &right);
  return seen(RULES, side, view, first, left) | seen(RULES, side, view, first, right) << 1
       | seen(RULES, side, view, second, left) << 2 | seen(RULES, side, view, second, right) << 3;
}
// The same of one query.
template<int RULES> __device__ __forceinline__ int two_of_keys(const Side* side, const View* view, Query query, int key) {
  Key left, right;
  keys_at(RULES, side, view, key, &left, &right);
  return seen(RULES, side, view, query, left) | seen(RULES, side, view, query, right) << 1;
}
template<int ALL, int N> __device__ __forceinline__ void hide_keys(float (&s)[N], const Side* side, int entry, int b, int h, int token, int key) {
  constexpr int RULES = OF_PAIRS(ALL);
  View view = view_of(RULES, side, b, h);
  // Bits first, so that what is looked at takes few registers beside the scores.
#pragma unroll
  for (int part = 0; part < N; part += 32) {
    u32 bits = 0;
    // Blocks are hidden as a whole, and these 32 numbers are of one.
    bool any = !(ALL & BLOCKS) || !is_hidden(entry, token, key + part * 2);
    if (any && whole<ALL>(side, token, key + part * 2 + 57)) continue;
    if (any && ONE_BY_ONE(RULES)) {
#pragma unroll 1
      for (int row = 0; row < 16; row += 8) {
        Query query = query_at(RULES, side, &view, token + row);
#pragma unroll 1
        for (int j = 0; j < 8; j++) bits |= two_of_keys<RULES>(side, &view, query, key + part * 2 + 8 * j) << (4 * j + row / 4);
      }
    } else if (any) {
      Query first = query_at(RULES, side, &view, token), second = query_at(RULES, side, &view, token + 8);
#pragma unroll AT_ONCE(RULES)
      for (int j = 0; j < 8; j++)
        bits |= four_of_keys<RULES>(side, &view, first, second, key + part * 2 + 8 * j) << (4 * j);
    }
#pragma unroll
    for (int i = 0; i < 32; i++)
      if (!(bits >> i & 1)) s[part + i] = -INFINITE;
  }
}

// Queries are columns: this thread has keys `key` and `key + 8`.
template<int RULES> __device__ __forceinline__ int four_of_queries(const Side* side, const View* view, Key first, Key second, int token) {
  Query left, right;
  queries_at(RULES, side, view, token, &left, &right);
  return seen(RULES, side, view, left, first) | seen(RULES, side, view, right, first) << 1
       | seen(RULES, side, view, left, second) << 2 | seen(RULES, side, view, right, second) << 3;
}
template<int ALL, int N> __device__ __forceinline__ void hide_queries(float (&s)[N], const Side* side, int entry, int b, int h, int token, int key) {
  constexpr int RULES = OF_PAIRS(ALL);
  View view = view_of(RULES, side, b, h);
  Key first = key_at(RULES, side, &view, key), second = key_at(RULES, side, &view, key + 8);
#pragma unroll
  for (int part = 0; part < N; part += 32) {
    u32 bits = 0;
    bool any = !(ALL & BLOCKS) || !is_hidden(entry, token + part * 2, key);
    if (any && whole<ALL>(side, token + part * 2, key + 8)) continue;
    if (any) {
#pragma unroll AT_ONCE(RULES)
      for (int j = 0; j < 8; j++)
        bits |= four_of_queries<RULES>(side, &view, first, second, token + part * 2 + 8 * j) << (4 * j);
    }
#pragma unroll
    for (int i = 0; i < 32; i++)
      if (!(bits >> i & 1)) s[part + i] = -INFINITE;
  }
}

// Where later keys alone are hidden, nothing is read.
template<int N> __device__ __forceinline__ void hide_later(float (&s)[N], const Side& side, int token, int key) {
  int ahead = side.q_start - side.k_start;
#if KEYS_ARE_COLUMNS
  int last = side.keys - 1, first = token + ahead, second = first + 8;
  first = (first < last ? first : last) - key;
  second = (second < last ? second : last) - key;
#pragma unroll
  for (int j = 0; j < N / 4; j++)
#pragma unroll
    for (int i = 0; i < 2; i++) {
      if (8 * j + i > first) s[4 * j + i] = -INFINITE;
      if (8 * j + i > second) s[4 * j + 2 + i] = -INFINITE;
    }
#else
  int nobody = 0x7fffffff, first = key < side.keys ? key - ahead - token : nobody,
      second = key + 8 < side.keys ? key + 8 - ahead - token : nobody;
#pragma unroll
  for (int j = 0; j < N / 4; j++)
#pragma unroll
    for (int i = 0; i < 2; i++) {
      if (8 * j + i < first) s[4 * j + i] = -INFINITE;
      if (8 * j + i < second) s[4 * j + 2 + i] = -INFINITE;
    }
#endif
}

// The rules of each branch, known when this is compiled.
#if KEYS_ARE_COLUMNS
#define HIDE hide_keys
#else
#define HIDE hide_queries
#endif
// Marked tiles do without arrays where there are registers for both ways: masks with a stride and a list have
// none. Positions from arrays mark none.
#define QUICK(rules) (!((rules) & POSITIONS) && ((rules) & (STRIDE | LIST)) != (STRIDE | LIST))
template<int RULES, int N> __device__ __forceinline__ void hide_by(float (&s)[N], const Side& side, int entry, int b, int h, int token, int key) {
  if (QUICK(RULES) && (entry & LATER))
    hide_later(s, side, token, key);
  else
    HIDE<RULES>(s, &side, entry, fresh(b), fresh(h), fresh(token), fresh(key));
}
template<int N> __device__ __forceinline__ void hide(float (&s)[N], const Call& call, int entry, int branch, int b, int h, int token, int key) {
#if BRANCHES > 1
  if (branch == 0)
#endif
    hide_by<RULES_0>(s, call.sides[0], entry, b, h, token, key);
#if BRANCHES > 1
  if (branch == 1) hide_by<RULES_1>(s, call.sides[1], entry, b, h, token, key);
#endif
#if BRANCHES > 2
  if (branch == 2) hide_by<RULES_2>(s, call.sides[2], entry, b, h, token, key);
#endif
}
