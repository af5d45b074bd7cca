// Part of kernels.cpp, which includes it inside its namespaces: the machine's limits, for `fourbee bench roofline`.

// 16 independent chains of products, so that nothing waits for a result: 16 x 64 products a turn.
int32_t spin_int8(int64_t turns) {
  I sums[16];
  for (I& one : sums) one = all(int32_t(0));
  const uint8_t bytes[64] = {3, 1, 4, 1, 5, 9, 2, 6};
  const B weights = load_bytes(bytes);
  for (int64_t turn = 0; turn < turns; turn++)
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) sums[i] = dot4(sums[i], weights, int32_t(turn));
  float total = 0;
  for (const I& one : sums) total += sum(to_float(one));
  return total > 0;
}

// The same for bfloat16: 16 x 32 products a turn.
int32_t spin_bf16(int64_t turns) {
  F sums[16];
  for (F& one : sums) one = zero();
  const uint8_t bytes[64] = {0, 63, 0, 63};
  const B weights = load_bytes(bytes);
  for (int64_t turn = 0; turn < turns; turn++)
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++) sums[i] = dot2_bf16(sums[i], weights, int32_t(turn & 0x3f80));
  float total = 0;
  for (const F& one : sums) total += sum(one);
  return total > 0;
}

// Reads everything once, in one stream that is fetched ahead as the weights are.
int32_t read_bytes(const uint8_t* data, int64_t size) {
  F sums[4] = {zero(), zero(), zero(), zero()};
  for (int64_t at = 0; at + 256 <= size; at += 256)
    for (int i = 0; i < 4; i++) {
      prefetch(data + at + 64 * i + kPrefetchBytes);
      sums[i] = add(sums[i], load(reinterpret_cast<const float*>(data + at + 64 * i)));
    }
  return sum(add(add(sums[0], sums[1]), add(sums[2], sums[3]))) > 0;
}
