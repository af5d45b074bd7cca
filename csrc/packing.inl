// Part of kernels.cpp, which includes it inside its namespaces: matrices into blocks, and rows of them out again.

// What the value furthest from zero becomes in the scales that are tried, as in packed.py. All arithmetic here is of one
// rounding an operation and in one order, without fma, so that packed.py and every instruction set give the same bytes.
constexpr float kCandidates[] = {-9.5f, -9.0f, -8.5f, -8.0f, -7.5f, -7.0f, -6.5f, -6.0f,
                                 8.5f,  8.0f,  7.5f,  7.0f,  6.5f,  6.0f};

float inverse_of(float scale) { return scale != 0 ? 1.0f / scale : 0.0f; }

float stored(float scale) { return half_to_float(float_to_half(scale)); }

F rounded(F x, float inverse, float low, float high) {
  return min(all(high), max(all(low), round(mul(x, all(inverse)))));
}

// The value furthest from zero, with its sign; of two alike the negative one.
float extreme_of(const float* x, int64_t group) {
  F high = load(x), low = sub(zero(), load(x));
  for (int64_t d = 16; d < group; d += 16) high = max(high, load(x + d)), low = max(low, sub(zero(), load(x + d)));
  const float most = largest(high), least = -largest(low);
  return (most > -least ? most : least) + 0.0f;  // never -0
}

// The best scale for the integers that `scale` gives (least squares), and by how much it lowers the
// squared error.
float fitted_4(const float* x, int64_t group, float scale, float* gain) {
  const float inverse = inverse_of(scale);
  F products = zero(), squares = zero();
  for (int64_t d = 0; d < group; d += 16) {
    const F v = load(x + d), q = rounded(v, inverse, -8.0f, 7.0f);
    products = add(products, mul(v, q));
    squares = add(squares, mul(q, q));
  }
  const float dot = sum(products), best = dot / std::max(1.0f, sum(squares));
  *gain = dot * best;
  return best;
}

// The scale of least squared error among the candidates, each fitted to its integers; fitted once more.
float searched_scale_4(const float* x, int64_t group) {
  const float extreme = extreme_of(x, group);
  float best = extreme / -8.0f, best_gain = 0, gain;
  for (const float becomes : kCandidates) {
    const float fitted = fitted_4(x, group, extreme / becomes, &gain);
    if (gain > best_gain) best_gain = gain, best = fitted;
  }
  return fitted_4(x, group, best, &gain);
}

// What is left of the least and of the greatest of a group in the ranges of int4c that are tried.
constexpr float kShrunk[] = {1.0f, 0.93f, 0.86f};
constexpr float kLeastScale = 0x1p-100f;  // below it, scales of int4c are 0

// A weight of int4c is scale * (q - zero / 16).
struct Compact {
  float scale, zero;
};

float sixteenths(float zero) { return std::min(255.0f, std::max(0.0f, std::nearbyintf(zero * 16.0f))); }

Compact compact_range(float low, float high) {
  const float scale = (high - low) / 15.0f;
  return {scale, sixteenths(-low * inverse_of(scale))};
}

F rounded_from(F x, float inverse, float zero) {
  return min(all(15.0f), max(all(0.0f), round(add(mul(x, all(inverse)), all(zero)))));
}

// The scale and the zero point of least squared error for the integers that `trial` gives, as in packed.py.
Compact fitted_compact(const float* x, int64_t group, float total, Compact trial, float* gain) {
  const float inverse = inverse_of(trial.scale), trial_zero = trial.zero * (1.0f / 16), count = float(group);
  F lanes = zero(), lane_squares = zero(), lane_products = zero();
  for (int64_t d = 0; d < group; d += 16) {
    const F v = load(x + d), q = rounded_from(v, inverse, trial_zero);
    lanes = add(lanes, q);
    lane_squares = add(lane_squares, mul(q, q));
    lane_products = add(lane_products, mul(v, q));
  }
  const float sums = sum(lanes), squares = sum(lane_squares), products = sum(lane_products);
  const float variance = count * squares - sums * sums, covariance = count * products - total * sums;
  const bool sloped = variance > 0 && covariance > 0;
  const float code = sloped ? sixteenths((sums - total * (variance / covariance)) / count) : trial.zero;
  const float zero_point = code * (1.0f / 16), dot = products - zero_point * total;
  const float about_zero = squares - (zero_point + zero_point) * sums + count * (zero_point * zero_point);
  const float scale = dot / std::max(about_zero, 1.0f / 256);
  *gain = dot * scale;
  return {scale, code};
}

Compact compact_of(const float* x, int64_t group, bool searched) {
  F highs = zero(), lows = zero(), totals = zero();
  for (int64_t d = 0; d < group; d += 16) {
    const F v = load(x + d);
    highs = max(highs, v), lows = max(lows, sub(zero(), v)), totals = add(totals, v);
  }
  const float high = largest(highs), low = -largest(lows), total = sum(totals);
  Compact best = compact_range(low, high);
  if (!searched) return best;
  float best_gain = 0;
  const auto attempt = [&](Compact trial) {
    float gain;
    const Compact fitted = fitted_compact(x, group, total, trial, &gain);
    if (gain > best_gain && fitted.scale > 0) best = fitted, best_gain = gain;
  };
  for (const float of_low : kShrunk)
    for (const float of_high : kShrunk) attempt(compact_range(low * of_low, high * of_high));
  attempt(best);  // once more, for the integers that it gives
  return best;
}

// Numbers as they are stored, of row n: into the lines of its group.
void write_numbers(const float* integers, int64_t group, bool small, int32_t added, int64_t n, uint8_t* lines) {
  for (int64_t d = 0; d < group; d++) {
    const int64_t in_line = d % (small ? 8 : 4);
    const uint32_t q = uint32_t(int32_t(integers[d]) + added);
    lines[d / (small ? 8 : 4) * 64 + n * 4 + in_line % 4] |= uint8_t(in_line < 4 ? q : q << 4);
  }
}

void pack_compact(const Matrix& w, bool searched, const float* rows, uint8_t* block) {
  const int64_t groups = w.columns / w.group, lines = w.group / 8 * 64;
  std::vector<float> integers(w.group);
  std::vector<Compact> found(groups);
  std::memset(block, 0, w.block_bytes);
  for (int64_t n = 0; n < kBlockRows; n++) {
    float most = 0;
    for (int64_t g = 0; g < groups; g++) {
      found[g] = compact_of(rows + n * w.columns + g * w.group, w.group, searched);
      most = std::max(most, found[g].scale);
    }
    const float base = most >= kLeastScale ? most / 255.0f : 0.0f;
    std::memcpy(block + w.block_bytes - kBlockRows * 4 + n * 4, &base, 4);
    for (int64_t g = 0; g < groups; g++) {
      const float* x = rows + n * w.columns + g * w.group;
      const float code = base > 0 ? std::nearbyintf(found[g].scale / base) : 0.0f;
      const float inverse = inverse_of(base * code), zero_point = found[g].zero * (1.0f / 16);
      for (int64_t d = 0; d < w.group; d += 16) store(integers.data() + d, rounded_from(load(x + d), inverse, zero_point));
      uint8_t* to = block + g * (lines + w.scale_bytes());
      write_numbers(integers.data(), w.group, true, 0, n, to);
      to[lines + n] = uint8_t(code), to[lines + kBlockRows + n] = uint8_t(found[g].zero);
    }
  }
}

void pack_groups(const Matrix& w, bool searched, const float* rows, uint8_t* block) {
  const bool small = w.kind == Kind::int4;
  const int64_t lines = w.group / (small ? 8 : 4);
  std::vector<float> integers(w.group);
  for (int64_t g = 0; g < w.columns / w.group; g++, block += lines * 64 + kBlockRows * 2) {
    std::memset(block, 0, lines * 64);
    for (int64_t n = 0; n < kBlockRows; n++) {
      const float* x = rows + n * w.columns + g * w.group;
      const float extreme = extreme_of(x, w.group);
      const float scale = stored(!small ? std::fabs(extreme) / 127.0f : searched ? searched_scale_4(x, w.group) : extreme / -8.0f);
      const float inverse = inverse_of(scale), low = small ? -8.0f : -127.0f, high = small ? 7.0f : 127.0f;
      for (int64_t d = 0; d < w.group; d += 16) store(integers.data() + d, rounded(load(x + d), inverse, low, high));
      write_numbers(integers.data(), w.group, small, small ? 8 : 128, n, block);
      const uint16_t bits = float_to_half(scale);
      std::memcpy(block + lines * 64 + n * 2, &bits, 2);
    }
  }
}

void pack_block(const Matrix& w, bool searched, float* rows, uint8_t* block) {
  if (w.rotated)
    for (int64_t n = 0; n < kBlockRows; n++) hadamard_128(rows + n * w.columns, w.columns);
  if (w.kind == Kind::int4c) return pack_compact(w, searched, rows, block);
  if (is_grouped(w.kind)) return pack_groups(w, searched, rows, block);
  for (int64_t n = 0; n < kBlockRows; n++)
    for (int64_t d = 0; d < w.columns; d++) {
      const float value = rows[n * w.columns + d];
      if (w.kind == Kind::f32) {
        std::memcpy(block + d * 64 + n * 4, &value, 4);
      } else {
        const uint16_t bits = float_to_bf16(value);
        std::memcpy(block + d / 2 * 64 + n * 4 + d % 2 * 2, &bits, 2);
      }
    }
}

void unpack_row(const Matrix& w, int64_t row, float* out) {
  const int64_t lane = row % kBlockRows;
  const uint8_t* data = w.data + row / kBlockRows * w.block_bytes;
  if (w.kind == Kind::f32) {
    for (int64_t d = 0; d < w.columns; d++) std::memcpy(out + d, data + d * 64 + lane * 4, 4);
  } else if (w.kind == Kind::bf16) {
    for (int64_t d = 0; d < w.columns; d++) {
      uint16_t bits;
      std::memcpy(&bits, data + d / 2 * 64 + lane * 4 + d % 2 * 2, 2);
      out[d] = bf16_to_float(bits);
    }
  } else {
    const bool small = is_int4(w.kind), affine = w.kind == Kind::int4a, compact = w.kind == Kind::int4c;
    const int64_t lines = w.group / (small ? 8 : 4);
    float base = 0;
    if (compact) std::memcpy(&base, data + w.block_bytes - kBlockRows * 4 + lane * 4, 4);
    for (int64_t g = 0; g < w.columns / w.group; g++, data += lines * 64 + w.scale_bytes()) {
      uint16_t bits[2] = {0, 0};
      std::memcpy(bits, data + lines * 64 + lane * 2, 2);
      if (affine) std::memcpy(bits + 1, data + lines * 64 + kBlockRows * 2 + lane * 2, 2);
      const uint8_t* codes = data + lines * 64 + lane;
      const float scale = compact ? base * float(codes[0]) : half_to_float(bits[0]), minimum = half_to_float(bits[1]);
      const float zero_point = compact ? float(codes[kBlockRows]) * (1.0f / 16) : affine ? 0.0f : small ? 8.0f : 128.0f;
      for (int64_t i = 0; i < w.group; i++) {
        const int64_t in_line = i % (small ? 8 : 4);
        const uint8_t byte = data[i / (small ? 8 : 4) * 64 + lane * 4 + in_line % 4];
        const int32_t q = small ? (in_line < 4 ? byte & 15 : byte >> 4) : byte;
        const float value = scale * (float(q) - zero_point);
        out[g * w.group + i] = affine ? value + minimum : value;
      }
    }
  }
  if (w.rotated) hadamard_128(out, w.columns);
}
