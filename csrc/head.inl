// Part of kernels.cpp, which includes it inside its namespaces: what the head asks of a part of a row of logits.

// Lanes of logits from `at`; those past the end are -inf.
inline F logits_at(const float* logits, int64_t at, int64_t count) {
  if (at + 16 <= count) return load(logits + at);
  float lanes[16];
  for (int64_t i = 0; i < 16; i++) lanes[i] = at + i < count ? logits[at + i] : kLowest;
  return load(lanes);
}

float scaled_mass(const float* logits, int64_t count, float peak, float temperature) {
  F sums = zero();
  for (int64_t at = 0; at < count; at += 16)
    sums = add(sums, exp(div(sub(logits_at(logits, at, count), all(peak)), all(temperature))));
  return sum(sums);
}

void scan_logits(const float* logits, int64_t count, float* maxima, LogitScan* scan) {
  const F infinite = all(std::numeric_limits<float>::infinity());
  float peak = kLowest;
  uint32_t usual = 0xffff;  // lanes that held neither NaN nor +inf
  for (int64_t group = 0; group < count; group += kMaximaColumns) {
    F most = all(kLowest);
    for (int64_t at = group; at < std::min(count, group + kMaximaColumns); at += 16) {
      const F x = logits_at(logits, at, count);
      usual &= below(x, infinite);
      most = max(most, x);
    }
    *maxima++ = largest(most);
    peak = std::max(peak, maxima[-1]);
  }
  *scan = {peak, peak > kLowest ? scaled_mass(logits, count, peak, 1) : 0.0f, usual == 0xffff};
}

int64_t gather_logits(const float* logits, int64_t count, float least, int64_t first, LikelyToken* tokens) {
  int64_t found = 0;
  for (int64_t at = 0; at < count; at += 16) {
    uint32_t lanes = ~below(logits_at(logits, at, count), all(least)) & 0xffff;
    for (; lanes; lanes &= lanes - 1) {
      const int64_t i = at + __builtin_ctz(lanes);
      if (i < count) tokens[found++] = {logits[i], int32_t(first + i)};
    }
  }
  return found;
}

void sample_logits(const NoisyRow& row, const float* logits, int64_t count, int64_t first, NoisyToken* best) {
  for (int64_t at = 0; at < count; at += 16) {
    float scaled[16];
    const F lanes = div(sub(logits_at(logits, at, count), all(row.peak)), all(row.temperature));
    if (double(largest(lanes)) + kMostNoise < best->noisy) continue;
    store(scaled, lanes);
    for (int64_t i = 0; i < std::min<int64_t>(16, count - at); i++) {
      const uint64_t bits = noise_bits(row.key, uint64_t(first + at + i));
      if (double(scaled[i]) + gumbel_bound(bits) <= best->noisy) continue;
      if (row.min_p > 0 && exp(scaled[i]) < row.min_p) continue;
      const double noisy = double(scaled[i]) + gumbel(bits);
      if (noisy > best->noisy) *best = {noisy, first + at + i};
    }
  }
}
