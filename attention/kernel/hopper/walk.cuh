// What a workgroup of a pass by queries goes through: turns, of which each has a tile of queries of a head, and of
// that the tiles of keys which are in its lists.
//
// PIECE keys of a tile come at a time; Q_STAGES, K_STAGES and V_STAGES say how many tiles of queries and pieces of keys
// and values there is room for (see source.rs).

#define TALL (64 * COMPUTING)
#define TILE (TALL * HEAD * 2)
#define PIECES (TILE_KEYS / PIECE)
#define PIECE_TILE (PIECE * HEAD * 2)

// The lists of a tile of queries, one per branch: where in the side's tiles they begin, and their lengths.
struct Lists {
  int first[BRANCHES], count[BRANCHES];
  int total;
};

__device__ __forceinline__ Lists lists_of(const Call& call, int row, int h, int tile) {
  Lists lists;
  lists.total = 0;
  int tiles = (call.queries + TALL - 1) / TALL;
#pragma unroll
  for (int i = 0; i < BRANCHES; i++) {
    const Side& side = call.sides[i];
    int at = (row * side.classes + __ldg(side.numbers + side.heads + 4 * h)) * tiles + tile;
    lists.first[i] = __ldg(side.starts + at);
    lists.count[i] = __ldg(side.starts + at + 1) - lists.first[i];
    lists.total += lists.count[i];
  }
  return lists;
}

// The item of a turn, row and head, or a negative number where there is none.
__device__ __forceinline__ int item(const Call& call, int turn, int& tile) {
  const int* at = call.order + 2 * (turn * (int)gridDim.x + (int)blockIdx.x);
  tile = __ldg(at + 1);
  return __ldg(at);
}

// With every piece of keys come four numbers for those who compute: an entry of a list, the row and head and
// the tile of queries that it is for, and marks: which branch it is of, whether it is the first or last of its tile of
// queries or of its list, whether it is the second of its tile of keys, and whether there is nothing more.
#define BRANCH 3
#define FIRST 4
#define LAST 8
#define FIRST_OF_LIST 16
#define LAST_OF_LIST 32
#define END 64
#define SECOND 128

// Of a piece, where `marks` are those of its tile.
__device__ __forceinline__ int marks_of(int marks, int piece) {
  if (piece != 0) marks = (marks & ~(FIRST | FIRST_OF_LIST)) | SECOND;
  if (piece != PIECES - 1) marks &= ~(LAST | LAST_OF_LIST);
  return marks;
}
// The first key of a piece.
__device__ __forceinline__ int key_of(int4 what) { return tile_of(what.x) * TILE_KEYS + (what.w & SECOND ? PIECE : 0); }

// Whether an entry says that of this piece nothing is seen by the `part`th 64 queries.
__device__ __forceinline__ bool nothing_seen(int4 what, int part) {
  bool nothing = what.x < 0;
#pragma unroll
  for (int n = 0; n < PIECE / 64; n++) nothing &= what.x >> (HIDDEN_AT + 2 * part + (what.w & SECOND ? 1 : n)) & 1;
  // One lane says so: where the compiler does not know that a warp goes one way, it serializes the products.
  return __shfl_sync(~0u, nothing, 0);
}

// Whether there are registers to look up entries before they are needed.
#define EARLY (COMPUTING < 3)

// What there is to load, and whose it is.
struct Load { int entry, bh, tile, marks; };
struct Heads { int row, query, key; };

// Made anew each time: kept, they would take registers that a loader has not.
__device__ __forceinline__ Heads heads_of(const Call& call, int bh) {
  int row = bh / call.heads, h = bh % call.heads;
  return {row, h, h / (call.heads / call.kv)};
}

// Calls `each` for all entries of all turns, one after another. By one warp: its lanes look up 32 turns at a time,
// and 32 entries at a time before they are needed, so that nobody waits for one look-up after the other.
template<class Each> __device__ __forceinline__ void walk(const Call& call, Each each) {
  int lane = threadIdx.x & 31;
  for (int base = 0; base < call.turns; base += 32) {
    int bh = -1, tile = 0;
    if (base + lane < call.turns) bh = item(call, base + lane, tile);
    Lists mine;
    mine.total = 0;
#pragma unroll
    for (int n = 0; n < BRANCHES; n++) mine.first[n] = mine.count[n] = 0;
    if (bh >= 0) mine = lists_of(call, bh / call.heads, bh % call.heads, tile);
    // Entries of all turns up to and with this lane's.
    int upto = mine.total;
#pragma unroll
    for (int other = 1; other < 32; other *= 2) {
      int before = __shfl_up_sync(~0u, upto, other);
      if (lane >= other) upto += before;
    }
    int all = __shfl_sync(~0u, upto, 31);
    // The entry with that number.
    auto find = [&](int at) {
      int turn = 0;
#pragma unroll
      for (int step = 16; step > 0; step /= 2)
        if (__shfl_sync(~0u, upto, turn + step - 1) <= at) turn += step;
      int total = __shfl_sync(~0u, mine.total, turn), within = at - __shfl_sync(~0u, upto, turn) + total;
      Load load;
      load.marks = (within == 0 ? FIRST : 0) | (within == total - 1 ? LAST : 0);
      load.entry = 0;
#pragma unroll
      for (int n = 0; n < BRANCHES; n++) {
        int first = __shfl_sync(~0u, mine.first[n], turn), count = __shfl_sync(~0u, mine.count[n], turn);
        if (within >= 0 && within < count && at < all) {
          load.entry = __ldg(call.sides[n].tiles + first + within);
          load.marks |= n | (within == 0 ? FIRST_OF_LIST : 0) | (within == count - 1 ? LAST_OF_LIST : 0);
        }
        within -= count;
      }
      load.bh = __shfl_sync(~0u, bh, turn);
      load.tile = __shfl_sync(~0u, tile, turn);
      return load;
    };
    Load next = find(lane);
    for (int at = 0; at < all; at += 32) {
      Load mine = EARLY ? next : find(at + lane);
      if (EARLY && at + 32 < all) next = find(at + 32 + lane);
      for (int n = 0; n < 32 && at + n < all; n++) {
        Load load;
        load.entry = __shfl_sync(~0u, mine.entry, n);
        load.bh = __shfl_sync(~0u, mine.bh, n);
        load.tile = __shfl_sync(~0u, mine.tile, n);
        load.marks = __shfl_sync(~0u, mine.marks, n);
        each(load);
      }
    }
  }
}
