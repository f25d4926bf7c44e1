// What a workgroup of a pass by keys goes through: for a tile of KEYS keys of a key head, lists of the tiles of TALL
// queries that see it, one per branch and query head (see source.rs for both, and for STAGES, the tiles
// of queries that there is room for).

#define TALL TILE_QUERIES
#define KEYS TILE_KEYS

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
// Whether there are any, over the heads that read a key head.
__device__ __forceinline__ bool any(const Call& call, int branch, int b, int head, int heads, int tile) {
  for (int h = head; h < head + heads; h++) {
    int2 list = list_of(call, branch, b, h, tile);
    if (list.x < list.y) return true;
  }
  return false;
}
