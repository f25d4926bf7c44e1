// What a workgroup of a pass by keys goes through: for a tile of KEYS keys of a key head, lists of the tiles of TALL
// queries that see it, one per branch and query head (see source.rs for both, and for STAGES, the tiles
// of queries that there is room for).

#define TALL TILE_QUERIES
#define KEYS TILE_KEYS

// What a workgroup has: a tile of keys of a row, and the first query head that reads them.
struct OfKeys { int b, head, tile; };
__device__ __forceinline__ OfKeys of_group(const Call& call, int group) {
  int of_keys = __ldg(call.order + 2 * group);
  return {of_keys / call.kv, of_keys % call.kv * (call.heads / call.kv), __ldg(call.order + 2 * group + 1)};
}
// Made anew where it is needed, or it would take a register all the time.
__device__ __forceinline__ int kv_of(const Call& call, OfKeys at) { return at.head / (call.heads / call.kv); }

// Tiles of queries of one head that see a tile of keys: first, and behind the last.
__device__ __forceinline__ int2 list_of(const Call& call, int branch, int b, int h, int tile) {
  const Side& side = call.sides[branch];
  int tiles = (call.keys + KEYS - 1) / KEYS;
  int row = (b * side.classes + __ldg(side.numbers + side.heads + 4 * h)) * tiles + tile;
  return make_int2(__ldg(side.starts + row), __ldg(side.starts + row + 1));
}
// Whether the entry of a tile of 128 keys says that nothing of its `half`th 64 keys is seen.
__device__ __forceinline__ bool nothing_seen(int entry, int half) {
  bool nothing = true;
#pragma unroll
  for (int part = 0; part < TALL / 64; part++) nothing &= entry >> (HIDDEN_AT + 2 * part + half) & 1;
  return nothing;
}

// Calls `each` with all entries of the lists of a tile of keys, their query heads and branches, one after another. By one
// warp: its lanes look up 32 lists and 32 entries at a time, so that nobody waits for one look-up after the other.
template<class Each> __device__ __forceinline__ void walk(const Call& call, OfKeys place, Each each) {
  int lane = threadIdx.x & 31, heads = call.heads / call.kv;
#pragma unroll
  for (int branch = 0; branch < BRANCHES; branch++) {
    int2 mine = make_int2(0, 0);
    for (int n = 0; n < heads; n++) {
      if (n % 32 == 0 && n + lane < heads) mine = list_of(call, branch, place.b, place.head + n + lane, place.tile);
      int last = __shfl_sync(~0u, mine.y, n % 32);
      for (int at = __shfl_sync(~0u, mine.x, n % 32); at < last; at += 32) {
        int entry = at + lane < last ? __ldg(call.sides[branch].tiles + at + lane) : 0;
        for (int i = 0; i < 32 && at + i < last; i++) each(__shfl_sync(~0u, entry, i), place.head + n, branch);
      }
    }
  }
}
