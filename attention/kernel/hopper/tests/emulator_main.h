// Behind a kernel: reads grid, threads, buffers and the argument, runs, and writes the buffers back.
// Addresses are given as number of a buffer (from 1 on, in the upper half) and bytes.

static void get(void* to, size_t bytes) {
  if (fread(to, 1, bytes, stdin) != bytes) fail("the input ends");
}
static std::vector<std::vector<char>> buffers;
template<class T> static void found(T& address) {
  u64 x;
  memcpy(&x, &address, 8);
  if (x == 0) return;
  x = (u64)buffers.at((x >> 32) - 1).data() + (x & 0xffffffff);
  memcpy(&address, &x, 8);
}

int main() {
  int sizes[4];
  get(sizes, sizeof(sizes));
  buffers.resize(sizes[3]);
  for (auto& buffer : buffers) {
    u64 bytes;
    get(&bytes, 8);
    buffer.resize(bytes);
    get(buffer.data(), bytes);
  }
  static Call call;
  get(&call, sizeof(call));
  for (Map* map : {&call.q, &call.k, &call.v, &call.dout, &call.o, &call.to}) found(map->words[0]);
  for (Side& side : call.sides) found(side.numbers), found(side.starts), found(side.tiles);
  found(call.order), found(call.out), found(call.lse), found(call.lse2), found(call.dots), found(call.sums);
  found(call.whole), found(call.whole_lse), found(call.dout_rows), found(call.dq), found(call.dk), found(call.dv);
  for (int y = 0; y < sizes[1]; y++)
    for (int x = 0; x < sizes[0]; x++) {
      blockIdx = {x, y, 0};
      blockDim = {sizes[2], 1, 1};
      gridDim = {sizes[0], sizes[1], 1};
      memset(memory, 0xff, sizeof(memory));
      memset(barriers, 0, sizeof(barriers));
      memset(named, 0, sizeof(named));
      run_group(sizes[2], [] { ENTRY(call); });
    }
  for (auto& buffer : buffers) fwrite(buffer.data(), 1, buffer.size(), stdout);
  return 0;
}
