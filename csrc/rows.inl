// Part of kernels.cpp, which includes it inside its namespaces: rows made ready for products (norm, SwiGLU, rotation, rounding).

float inverse_root_mean_square(const float* x, int64_t columns, float eps) {
  F squares = zero();
  int64_t d = 0;
  for (; d + 16 <= columns; d += 16) squares = fma(load(x + d), load(x + d), squares);
  float total = sum(squares);
  for (; d < columns; d++) total += x[d] * x[d];
  return 1.0f / std::sqrt(total / float(columns) + eps);
}

void normed(const float* x, const float* weight, float eps, int64_t columns, float* out) {
  const float inverse = inverse_root_mean_square(x, columns, eps);
  int64_t d = 0;
  for (; d + 16 <= columns; d += 16) store(out + d, mul(mul(load(x + d), all(inverse)), load(weight + d)));
  for (; d < columns; d++) out[d] = x[d] * inverse * weight[d];
}

void swiglu(const float* gate, const float* up, int64_t columns, float* out) {
  int64_t d = 0;
  const F one = all(1.0f), nothing = zero();
  for (; d + 16 <= columns; d += 16) {
    const F g = load(gate + d);
    store(out + d, mul(div(g, add(one, exp(sub(nothing, g)))), load(up + d)));
  }
  for (; d < columns; d++) out[d] = gate[d] / (1.0f + exp(-gate[d])) * up[d];
}

// One step of the transform within 16 lanes: of each pair H apart the sum, then the difference.
template <int H>
inline F butterfly(F x) {
  float lanes[16];
  for (int i = 0; i < 16; i++) lanes[i] = i & H ? -1.0f : 1.0f;
  return fma(x, load(lanes), exchange<H>(x));
}

// Each 128 numbers times the orthonormal Hadamard matrix (Sylvester's order), in place.
void hadamard_128(float* x, int64_t columns) {
  const F scale = all(0.08838834764831845f);  // 128^-0.5
  for (int64_t first = 0; first < columns; first += 128) {
    float* block = x + first;
    F lines[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++)
      lines[i] = butterfly<8>(butterfly<4>(butterfly<2>(butterfly<1>(load(block + 16 * i)))));
#pragma GCC unroll 3
    for (int half = 1; half < 8; half *= 2)
#pragma GCC unroll 4
      for (int pair = 0; pair < 4; pair++) {  // of lines `half` apart
        const int j = pair / half * 2 * half + pair % half;
        const F a = lines[j], b = lines[j + half];
        lines[j] = add(a, b), lines[j + half] = sub(a, b);
      }
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) store(block + 16 * i, mul(lines[i], scale));
  }
}

// One group to int8: value = scale * integer. NaN and infinity make the scale NaN, so that they
// are seen in the logits.
void quantise(const float* x, int64_t columns, int8_t* out, float* scale, int32_t* total) {
  F top = zero(), poison = zero();
  for (int64_t d = 0; d < columns; d += 16) {
    const F v = load(x + d);
    top = max(top, abs(v));
    poison = fma(v, zero(), poison);
  }
  const float greatest = largest(top);
  const float inverse = greatest > 0 ? 127.0f / greatest : 0.0f;
  *scale = greatest / 127.0f + sum(poison);
  F added = zero();
  for (int64_t d = 0; d < columns; d += 16) {
    const F v = round(mul(load(x + d), all(inverse)));
    added = add(added, v);  // whole numbers below 2^24: exact
    store_i8(out + d, to_int(v));
  }
  const float whole = sum(added);
  *total = std::fabs(whole) < 0x1p24f ? int32_t(whole) : 0;  // of NaN there is none
}

void prepare(const Source& source, const Inputs& inputs, int64_t row_begin, int64_t row_end) {
  const int64_t columns = inputs.columns;
  std::vector<float> scratch(columns);
  for (int64_t row = row_begin; row < row_end; row++) {
    const float* x = source.x + row * columns;
    if (source.gated) {
      swiglu(x, source.gated + row * columns, columns, scratch.data());
      x = scratch.data();
    } else if (source.norm) {
      normed(x, source.norm, source.eps, columns, scratch.data());
      x = scratch.data();
    }
    if (inputs.rotated) {
      if (x != scratch.data()) std::copy(x, x + columns, scratch.data());
      hadamard_128(scratch.data(), columns);
      x = scratch.data();
    }
    if (inputs.kind == Kind::f32) {
      std::memcpy(reinterpret_cast<float*>(inputs.values) + row * columns, x, columns * 4);
    } else if (inputs.kind == Kind::bf16) {
      uint16_t* out = reinterpret_cast<uint16_t*>(inputs.values) + row * columns;
      for (int64_t d = 0; d < columns; d++) out[d] = float_to_bf16(x[d]);
    } else {
      const int64_t group = inputs.group, groups = columns / group;
      for (int64_t g = 0; g < groups; g++) {
        const int64_t at = row * groups + g;
        quantise(x + g * group, group, reinterpret_cast<int8_t*>(inputs.values) + at * group, inputs.scales + at, inputs.sums + at);
        inputs.shifts[at] = float(inputs.sums[at]) * (-1.0f / 16);
      }
    }
  }
}

void norm(const Source& source, float* out, int64_t columns, int64_t row_begin, int64_t row_end) {
  for (int64_t row = row_begin; row < row_end; row++)
    normed(source.x + row * columns, source.norm, source.eps, columns, out + row * columns);
}
