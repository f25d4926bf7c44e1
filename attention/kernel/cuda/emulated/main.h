// Behind kernels: reads buffers and launches, runs these, and writes the buffers back. Addresses, the first words
// of a call, are given as number of a buffer (from 1 on, in the upper half) and bytes.

static void get(void* to, size_t bytes) {
  if (fread(to, 1, bytes, stdin) != bytes) fail("the input ends");
}

int main() {
  static void (*const entries[])(const Call) = {ENTRIES};
  int count;
  get(&count, 4);
  std::vector<std::vector<char>> buffers(count);
  for (auto& buffer : buffers) {
    unsigned long long bytes;
    get(&bytes, 8);
    buffer.resize(bytes);
    get(buffer.data(), bytes);
  }
  get(&count, 4);
  for (; count > 0; count--) {
    int launch[5];
    static Call call;
    get(launch, sizeof(launch));
    get(&call, sizeof(call));
    for (int i = 0; i < ADDRESSES; i++) {
      unsigned long long x;
      memcpy(&x, (char*)&call + 8 * i, 8);
      if (x != 0) x = (unsigned long long)buffers.at((x >> 32) - 1).data() + (x & 0xffffffff);
      memcpy((char*)&call + 8 * i, &x, 8);
    }
    for (int z = 0; z < launch[3]; z++)
      for (int y = 0; y < launch[2]; y++)
        for (int x = 0; x < launch[1]; x++) {
          blockIdx = {x, y, z};
          memset(space, 0xff, sizeof(space));
          memset(of_warps, 0, sizeof(of_warps));
          of_all = {};
          run_group(launch[4], [&] { entries[launch[0]](call); });
        }
  }
  for (auto& buffer : buffers) fwrite(buffer.data(), 1, buffer.size(), stdout);
  return 0;
}
