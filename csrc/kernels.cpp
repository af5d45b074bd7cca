// The kernels, written once over simd.h and compiled once for each instruction set.
//
// Numbers: a row's result depends on that row alone. Every output element is summed over its
// columns in order by one accumulator, whatever tile it falls into; keys are summed in splits of
// kSplitKeys, which are joined in order; there is one exponential.
#include "kernels.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "simd.h"

namespace fourbee {
namespace {

constexpr float kLowest = -std::numeric_limits<float>::infinity();

// Rows that are multiplied while the weights of a few blocks stay in the cache.
constexpr int64_t kRowChunk = 192;
// How far ahead the weights are fetched when few rows share them; one stream a block.
constexpr int64_t kPrefetchBytes = 3072;

// ---- rows made ready -------------------------------------------------------------------------

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

// Each 128 numbers times the orthonormal Hadamard matrix (Sylvester's order), in place.
void hadamard_128(float* x, int64_t columns) {
  const F scale = all(0.08838834764831845f);  // 128^-0.5
  for (int64_t first = 0; first < columns; first += 128) {
    float* block = x + first;
    for (int half = 1; half < 16; half *= 2)
      for (int i = 0; i < 128; i += 2 * half)
        for (int j = i; j < i + half; j++) {
          const float a = block[j], b = block[j + half];
          block[j] = a + b, block[j + half] = a - b;
        }
    F lines[8];
    for (int i = 0; i < 8; i++) lines[i] = load(block + 16 * i);
    for (int half = 1; half < 8; half *= 2)
      for (int i = 0; i < 8; i += 2 * half)
        for (int j = i; j < i + half; j++) {
          const F a = lines[j], b = lines[j + half];
          lines[j] = add(a, b), lines[j + half] = sub(a, b);
        }
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
  *total = int32_t(sum(added));
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
      for (int64_t g = 0; g < groups; g++)
        quantise(x + g * group, group, reinterpret_cast<int8_t*>(inputs.values) + row * columns + g * group,
                 inputs.scales + row * groups + g, inputs.sums + row * groups + g);
    }
  }
}

void norm(const Source& source, float* out, int64_t columns, int64_t row_begin, int64_t row_end) {
  for (int64_t row = row_begin; row < row_end; row++)
    normed(source.x + row * columns, source.norm, source.eps, columns, out + row * columns);
}

// ---- products --------------------------------------------------------------------------------

// What a tile reads: M rows of inputs from `row`, NB blocks of weights from `block`.
struct TileArgs {
  const Product& product;
  int64_t row, block;
};

template <int M, int NB>
inline void write_tile(const TileArgs& a, const F (&sums)[M][NB]) {
  const int64_t width = a.product.matrix->rows;
  for (int m = 0; m < M; m++)
    for (int b = 0; b < NB; b++) {
      const int64_t first = (a.block + b) * kBlockRows;
      float* out = a.product.out + (a.row + m) * width + first;
      if (first + kBlockRows <= width) {
        store(out, a.product.add ? add(load(out), sums[m][b]) : sums[m][b]);
      } else {  // the last block, filled up with rows that do not exist
        float lanes[kBlockRows];
        store(lanes, sums[m][b]);
        for (int64_t i = 0; first + i < width; i++) out[i] = a.product.add ? out[i] + lanes[i] : lanes[i];
      }
    }
}

template <int M, int NB>
void tile_f32(const TileArgs& a) {
  const Matrix& w = *a.product.matrix;
  const int64_t columns = w.columns;
  const float* x = reinterpret_cast<const float*>(a.product.inputs->values) + a.row * columns;
  const uint8_t* data = w.data + a.block * w.block_bytes;
  F sums[M][NB];
  for (auto& row : sums)
    for (F& one : row) one = zero();
  for (int64_t d = 0; d < columns; d++) {
    F weights[NB];
    for (int b = 0; b < NB; b++) {
      const uint8_t* line = data + b * w.block_bytes + d * 64;
      if (M <= 4) prefetch(line + kPrefetchBytes);
      weights[b] = load(reinterpret_cast<const float*>(line));
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; m++) {
      const F one = all(x[m * columns + d]);
#pragma GCC unroll 4
      for (int b = 0; b < NB; b++) sums[m][b] = fma(weights[b], one, sums[m][b]);
    }
  }
  write_tile<M, NB>(a, sums);
}

template <int M, int NB>
void tile_bf16(const TileArgs& a) {
  const Matrix& w = *a.product.matrix;
  const int64_t columns = w.columns;
  const uint8_t* x = a.product.inputs->values + a.row * columns * 2;
  const uint8_t* data = w.data + a.block * w.block_bytes;
  F sums[M][NB];
  for (auto& row : sums)
    for (F& one : row) one = zero();
  for (int64_t d = 0; d < columns; d += 2) {
    B weights[NB];
    for (int b = 0; b < NB; b++) {
      const uint8_t* line = data + b * w.block_bytes + d * 32;
      if (M <= 4) prefetch(line + kPrefetchBytes);
      weights[b] = load_bytes(line);
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; m++) {
      const int32_t two = four_bytes(x + (m * columns + d) * 2);
#pragma GCC unroll 4
      for (int b = 0; b < NB; b++) sums[m][b] = dot2_bf16(sums[m][b], weights[b], two);
    }
  }
  write_tile<M, NB>(a, sums);
}

// The zero point costs nothing: the integer sums start at -zero * (sum of the group's inputs).
template <Kind K, int M, int NB>
void tile_int(const TileArgs& a) {
  constexpr int32_t kZero = K == Kind::int4 ? 8 : 128;
  constexpr int kColumns = K == Kind::int4 ? 8 : 4;  // columns of a line
  const Matrix& w = *a.product.matrix;
  const Inputs& in = *a.product.inputs;
  const int64_t columns = w.columns, group = w.group, groups = columns / group, lines = group / kColumns;
  const int8_t* x = reinterpret_cast<const int8_t*>(in.values) + a.row * columns;
  const float* x_scales = in.scales + a.row * groups;
  const int32_t* x_sums = in.sums + a.row * groups;
  const uint8_t* data = w.data + a.block * w.block_bytes;
  F sums[M][NB];
  for (auto& row : sums)
    for (F& one : row) one = zero();
  for (int64_t g = 0; g < groups; g++) {
    I products[M][NB];
#pragma GCC unroll 8
    for (int m = 0; m < M; m++) {
      const I start = all(-kZero * x_sums[m * groups + g]);
      for (int b = 0; b < NB; b++) products[m][b] = start;
    }
    const int8_t* inputs = x + g * group;
    for (int64_t s = 0; s < lines; s++) {
      B line[NB];
#pragma GCC unroll 4
      for (int b = 0; b < NB; b++) {
        const uint8_t* at = data + b * w.block_bytes + s * 64;
        if (M <= 4 && NB == 1) prefetch(at + kPrefetchBytes);
        line[b] = load_bytes(at);
      }
      if constexpr (K == Kind::int4) {
        B low[NB], high[NB];
#pragma GCC unroll 4
        for (int b = 0; b < NB; b++) low[b] = low_halves(line[b]), high[b] = high_halves(line[b]);
#pragma GCC unroll 8
        for (int m = 0; m < M; m++) {
          const int32_t four = four_bytes(inputs + m * columns + s * 8);
#pragma GCC unroll 4
          for (int b = 0; b < NB; b++) products[m][b] = dot4_small(products[m][b], low[b], four);
        }
#pragma GCC unroll 8
        for (int m = 0; m < M; m++) {
          const int32_t four = four_bytes(inputs + m * columns + s * 8 + 4);
#pragma GCC unroll 4
          for (int b = 0; b < NB; b++) products[m][b] = dot4_small(products[m][b], high[b], four);
        }
      } else {
#pragma GCC unroll 8
        for (int m = 0; m < M; m++) {
          const int32_t four = four_bytes(inputs + m * columns + s * 4);
#pragma GCC unroll 4
          for (int b = 0; b < NB; b++) products[m][b] = dot4(products[m][b], line[b], four);
        }
      }
    }
#pragma GCC unroll 4
    for (int b = 0; b < NB; b++) {
      const F scale = load_f16(reinterpret_cast<const uint16_t*>(data + b * w.block_bytes + lines * 64));
#pragma GCC unroll 8
      for (int m = 0; m < M; m++)
        sums[m][b] = fma(to_float(products[m][b]), mul(scale, all(x_scales[m * groups + g])), sums[m][b]);
    }
    data += lines * 64 + kBlockRows * 2;
  }
  write_tile<M, NB>(a, sums);
}

template <Kind K, int M, int NB>
void tile(const TileArgs& a) {
  if constexpr (K == Kind::f32) {
    tile_f32<M, NB>(a);
  } else if constexpr (K == Kind::bf16) {
    tile_bf16<M, NB>(a);
  } else {
    tile_int<K, M, NB>(a);
  }
}

template <Kind K, int NB>
void tile_rows(const TileArgs& a, int64_t rows) {
  switch (rows) {
    case 1: return tile<K, 1, NB>(a);
    case 2: return tile<K, 2, NB>(a);
    case 3: return tile<K, 3, NB>(a);
    case 4: return tile<K, 4, NB>(a);
    case 5: return tile<K, 5, NB>(a);
    default: return tile<K, 6, NB>(a);
  }
}

template <Kind K>
void multiply_kind(const Product& product, int64_t block_begin, int64_t block_end) {
  constexpr bool integer = K == Kind::int4 || K == Kind::int8;
  const int64_t rows = product.inputs->rows;
  for (int64_t chunk = 0; chunk < rows; chunk += kRowChunk) {
    const int64_t chunk_end = std::min(rows, chunk + kRowChunk);
    for (int64_t block = block_begin; block < block_end;) {
      // Few rows: integer weights in one stream; of the others four, since each sum is a chain.
      const int64_t left = block_end - block;
      const int64_t wide = rows > 4 ? 2 : integer ? 1 : rows <= 2 ? 4 : 2;
      const int64_t several = left >= wide ? wide : 1;
      for (int64_t row = chunk; row < chunk_end; row += 6) {
        const TileArgs a{product, row, block};
        const int64_t count = std::min<int64_t>(6, chunk_end - row);
        if (several == 1) {
          tile_rows<K, 1>(a, count);
        } else if (several == 2) {
          tile_rows<K, 2>(a, count);
        } else if (count == 1) {
          tile<K, 1, 4>(a);
        } else {
          tile<K, 2, 4>(a);
        }
      }
      block += several;
    }
  }
}

void multiply(const Product& product, int64_t block_begin, int64_t block_end) {
  switch (product.matrix->kind) {
    case Kind::f32: return multiply_kind<Kind::f32>(product, block_begin, block_end);
    case Kind::bf16: return multiply_kind<Kind::bf16>(product, block_begin, block_end);
    case Kind::int8: return multiply_kind<Kind::int8>(product, block_begin, block_end);
    case Kind::int4: return multiply_kind<Kind::int4>(product, block_begin, block_end);
  }
}

// ---- packing ---------------------------------------------------------------------------------

// What the value furthest from zero becomes in the scales that are tried, as in packed.py.
constexpr float kCandidates[] = {-9.5f, -9.0f, -8.5f, -8.0f, -7.5f, -7.0f, -6.5f, -6.0f,
                                 8.5f,  8.0f,  7.5f,  7.0f,  6.5f,  6.0f};

float group_scale_8(const float* x, int64_t group) {
  F top = zero();
  for (int64_t d = 0; d < group; d += 16) top = max(top, abs(load(x + d)));
  return half_to_float(float_to_half(largest(top) / 127.0f));
}

F rounded_4(F x, float inverse) { return min(all(7.0f), max(all(-8.0f), round(mul(x, all(inverse))))); }

// The best scale for the integers that `scale` gives (least squares), and by how much it lowers the
// squared error.
float fitted_4(const float* x, int64_t group, float scale, float* gain) {
  const float inverse = scale != 0 ? 1.0f / scale : 0.0f;
  F products = zero(), squares = zero();
  for (int64_t d = 0; d < group; d += 16) {
    const F v = load(x + d), q = rounded_4(v, inverse);
    products = fma(v, q, products);
    squares = fma(q, q, squares);
  }
  const float dot = sum(products), square = std::max(1.0f, sum(squares));
  *gain = dot / square * dot;
  return dot / square;
}

// The scale of least squared error among the candidates, each fitted to its integers; then the
// integers for that scale as it is stored.
float group_scale_4(const float* x, int64_t group, float* integers) {
  float extreme = 0;
  for (int64_t d = 0; d < group; d++)
    if (std::fabs(x[d]) > std::fabs(extreme)) extreme = x[d];
  float best = extreme / -8.0f, best_gain = 0, gain;
  for (const float becomes : kCandidates) {
    const float fitted = fitted_4(x, group, extreme / becomes, &gain);
    if (gain > best_gain) best_gain = gain, best = fitted;
  }
  const float scale = half_to_float(float_to_half(fitted_4(x, group, best, &gain)));
  const float inverse = scale != 0 ? 1.0f / scale : 0.0f;
  for (int64_t d = 0; d < group; d += 16) store(integers + d, rounded_4(load(x + d), inverse));
  return scale;
}

void pack_groups(const Matrix& w, const float* rows, uint8_t* block) {
  const bool small = w.kind == Kind::int4;
  const int64_t lines = w.group / (small ? 8 : 4);
  std::vector<float> integers(w.group);
  for (int64_t g = 0; g < w.columns / w.group; g++, block += lines * 64 + kBlockRows * 2) {
    std::memset(block, 0, lines * 64);
    for (int64_t n = 0; n < kBlockRows; n++) {
      const float* x = rows + n * w.columns + g * w.group;
      const float scale = small ? group_scale_4(x, w.group, integers.data()) : group_scale_8(x, w.group);
      if (!small) {
        const F divisor = all(scale > 0 ? scale : 1.0f);
        for (int64_t d = 0; d < w.group; d += 16)
          store(integers.data() + d, min(all(127.0f), max(all(-127.0f), round(div(load(x + d), divisor)))));
      }
      for (int64_t d = 0; d < w.group; d++) {
        const int64_t in_line = d % (small ? 8 : 4);
        const int32_t q = int32_t(integers[d]) + (small ? 8 : 128);
        block[d / (small ? 8 : 4) * 64 + n * 4 + in_line % 4] |= uint8_t(in_line < 4 ? q : q << 4);
      }
      const uint16_t bits = float_to_half(scale);
      std::memcpy(block + lines * 64 + n * 2, &bits, 2);
    }
  }
}

void pack_block(const Matrix& w, float* rows, uint8_t* block) {
  if (w.rotated)
    for (int64_t n = 0; n < kBlockRows; n++) hadamard_128(rows + n * w.columns, w.columns);
  if (w.kind == Kind::int8 || w.kind == Kind::int4) return pack_groups(w, rows, block);
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
    const bool small = w.kind == Kind::int4;
    const int64_t lines = w.group / (small ? 8 : 4);
    for (int64_t g = 0; g < w.columns / w.group; g++, data += lines * 64 + kBlockRows * 2) {
      uint16_t bits;
      std::memcpy(&bits, data + lines * 64 + lane * 2, 2);
      const float scale = half_to_float(bits);
      for (int64_t i = 0; i < w.group; i++) {
        const int64_t in_line = i % (small ? 8 : 4);
        const uint8_t byte = data[i / (small ? 8 : 4) * 64 + lane * 4 + in_line % 4];
        const int32_t q = small ? (in_line < 4 ? byte & 15 : byte >> 4) - 8 : byte - 128;
        out[g * w.group + i] = scale * float(q);
      }
    }
  }
  if (w.rotated) hadamard_128(out, w.columns);
}

// ---- attention -------------------------------------------------------------------------------

void rotate_heads(const HeadRotation& r, int64_t row_begin, int64_t row_end) {
  const int64_t half = r.head_dim / 2;
  std::vector<float> scratch(r.head_dim);
  float* x = scratch.data();
  for (int64_t row = row_begin; row < row_end; row++) {
    const float *cos = r.cos + row * half, *sin = r.sin + row * half;
    for (int64_t head = 0; head < r.heads; head++) {
      const int64_t at = (row * r.heads + head) * r.head_dim;
      normed(r.x + at, r.norm, r.eps, r.head_dim, x);
      float* out = r.out + at;
      for (int64_t d = 0; d < half; d++) {
        out[d] = x[d] * cos[d] - x[d + half] * sin[d];
        out[d + half] = x[d + half] * cos[d] + x[d] * sin[d];
      }
    }
  }
}

// One head of one layer of a page: keys [4 x 16 keys][K][16], values [64][K]; int8 has a scale for
// each key and each value behind them.
template <Kind K>
struct PageHead {
  const uint8_t* base;
  int64_t head_dim;
  static constexpr int64_t size = K == Kind::f32 ? 4 : K == Kind::bf16 ? 2 : 1;

  static F lanes(const uint8_t* p) {
    if constexpr (K == Kind::f32) return load(reinterpret_cast<const float*>(p));
    if constexpr (K == Kind::bf16) return load_bf16(reinterpret_cast<const uint16_t*>(p));
    return load_i8(reinterpret_cast<const int8_t*>(p));
  }
  F keys(int64_t block, int64_t d) const { return lanes(base + (block * head_dim + d) * 16 * size); }
  F values(int64_t key, int64_t d) const { return lanes(base + ((kPageKeys + key) * head_dim + d) * size); }
  const float* key_scales() const { return reinterpret_cast<const float*>(base + 2 * kPageKeys * head_dim); }
  const float* value_scales() const { return key_scales() + kPageKeys; }
};

template <Kind K>
void put(uint8_t* base, int64_t index, float value) {
  if constexpr (K == Kind::f32) std::memcpy(base + index * 4, &value, 4);
  if constexpr (K == Kind::bf16) {
    const uint16_t bits = float_to_bf16(value);
    std::memcpy(base + index * 2, &bits, 2);
  }
}

template <Kind K>
void store_head(uint8_t* base, int64_t slot, int64_t head_dim, const float* key, const float* value) {
  const int64_t key_at = (slot / 16 * head_dim) * 16 + slot % 16, value_at = (kPageKeys + slot) * head_dim;
  if constexpr (K == Kind::int8) {
    std::vector<int8_t> rounded(head_dim);
    float* scales = reinterpret_cast<float*>(base + 2 * kPageKeys * head_dim);
    int32_t unused;
    quantise(key, head_dim, rounded.data(), scales + slot, &unused);
    for (int64_t d = 0; d < head_dim; d++) base[key_at + d * 16] = uint8_t(rounded[d]);
    quantise(value, head_dim, rounded.data(), scales + kPageKeys + slot, &unused);
    std::memcpy(base + value_at, rounded.data(), head_dim);
  } else {
    for (int64_t d = 0; d < head_dim; d++) put<K>(base, key_at + d * 16, key[d]);
    for (int64_t d = 0; d < head_dim; d++) put<K>(base, value_at + d, value[d]);
  }
}

void store_keys(const PageLayout& layout, uint8_t* const* pages, int64_t layer, int64_t position,
                const float* key, const float* value) {
  for (int64_t head = 0; head < layout.heads; head++) {
    uint8_t* base = pages[position / kPageKeys] + layer * layout.layer_bytes + head * layout.head_bytes;
    const int64_t at = head * layout.head_dim, slot = position % kPageKeys;
    switch (layout.kind) {
      case Kind::f32: store_head<Kind::f32>(base, slot, layout.head_dim, key + at, value + at); break;
      case Kind::bf16: store_head<Kind::bf16>(base, slot, layout.head_dim, key + at, value + at); break;
      default: store_head<Kind::int8>(base, slot, layout.head_dim, key + at, value + at); break;
    }
  }
}

// One query head of one row: where its query lies and how many keys it sees.
struct QueryRow {
  const float* query;
  int64_t visible;
};

// Adds one page to the partial sums of R query rows: the softmax runs along (Milakov & Gimelshein
// 2018). A row that sees no key of the page is left as it was.
template <Kind K, int R>
void add_page(const PageHead<K>& page, int64_t first_key, const QueryRow* rows, float scale, Partial* partials) {
  const int64_t head_dim = page.head_dim;
  F scores[R][4];
  for (auto& row : scores)
    for (F& one : row) one = zero();
  for (int64_t d = 0; d < head_dim; d++) {
    F keys[4];
#pragma GCC unroll 4
    for (int b = 0; b < 4; b++) keys[b] = page.keys(b, d);
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) {
      const F q = all(rows[r].query[d]);
#pragma GCC unroll 4
      for (int b = 0; b < 4; b++) scores[r][b] = fma(keys[b], q, scores[r][b]);
    }
  }
  alignas(64) float weights[R][kPageKeys];
  float fade[R];
  for (int r = 0; r < R; r++) {
    const int64_t seen = std::min(kPageKeys, rows[r].visible - first_key);
    fade[r] = 1.0f;
    std::fill(weights[r], weights[r] + kPageKeys, 0.0f);
    if (seen <= 0) continue;
    for (int b = 0; b < 4; b++) {
      F one = mul(scores[r][b], all(scale));
      if constexpr (K == Kind::int8) one = mul(one, load(page.key_scales() + 16 * b));
      store(weights[r] + 16 * b, one);
    }
    std::fill(weights[r] + seen, weights[r] + kPageKeys, kLowest);
    F top = load(weights[r]);
    for (int b = 1; b < 4; b++) top = max(top, load(weights[r] + 16 * b));
    const float peak = std::max(partials[r].largest, largest(top));
    fade[r] = exp(partials[r].largest - peak);
    partials[r].largest = peak;
    F total = zero();
    for (int b = 0; b < 4; b++) store(weights[r] + 16 * b, exp(sub(load(weights[r] + 16 * b), all(peak))));
    std::fill(weights[r] + seen, weights[r] + kPageKeys, 0.0f);
    for (int b = 0; b < 4; b++) {
      const F one = load(weights[r] + 16 * b);
      total = add(total, one);
      if constexpr (K == Kind::int8) store(weights[r] + 16 * b, mul(one, load(page.value_scales() + 16 * b)));
    }
    partials[r].weight = partials[r].weight * fade[r] + sum(total);
  }
  for (int64_t d = 0; d < head_dim; d += 64) {
    const int lines = int(std::min<int64_t>(4, (head_dim - d) / 16));
    F sums[R][4];
    for (int r = 0; r < R; r++)
      for (int i = 0; i < 4; i++)
        sums[r][i] = i < lines ? mul(load(partials[r].sum + d + 16 * i), all(fade[r])) : zero();
    if (lines == 4) {
      for (int64_t key = 0; key < kPageKeys; key++) {
        F values[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) values[i] = page.values(key, d + 16 * i);
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) {
          const F weight = all(weights[r][key]);
#pragma GCC unroll 4
          for (int i = 0; i < 4; i++) sums[r][i] = fma(values[i], weight, sums[r][i]);
        }
      }
    } else {
      for (int64_t key = 0; key < kPageKeys; key++)
        for (int i = 0; i < lines; i++)
          for (int r = 0; r < R; r++)
            sums[r][i] = fma(page.values(key, d + 16 * i), all(weights[r][key]), sums[r][i]);
    }
    for (int r = 0; r < R; r++)
      for (int i = 0; i < lines; i++) store(partials[r].sum + d + 16 * i, sums[r][i]);
  }
}

template <Kind K>
void add_pages(const PageLayout& layout, const AttentionRows& a, int64_t head, int64_t page_begin,
               int64_t page_end, const QueryRow* rows, int64_t count, Partial* partials) {
  for (int64_t p = page_begin; p < page_end; p++) {
    const PageHead<K> page{a.pages[p] + a.layer * layout.layer_bytes + head * layout.head_bytes, layout.head_dim};
    const int64_t first = p * kPageKeys;
    for (int64_t r = 0; r < count; r += 4) {
      switch (std::min<int64_t>(4, count - r)) {
        case 1: add_page<K, 1>(page, first, rows + r, a.scale, partials + r); break;
        case 2: add_page<K, 2>(page, first, rows + r, a.scale, partials + r); break;
        case 3: add_page<K, 3>(page, first, rows + r, a.scale, partials + r); break;
        default: add_page<K, 4>(page, first, rows + r, a.scale, partials + r); break;
      }
    }
  }
}

void clear(Partial& partial, int64_t head_dim) {
  partial.largest = kLowest;
  partial.weight = 0;
  std::fill(partial.sum, partial.sum + head_dim, 0.0f);
}

// Pages of one split of the keys, for query rows that lie one after another.
void sum_split(const PageLayout& layout, const AttentionRows& a, int64_t head, int64_t split,
               const QueryRow* rows, int64_t count, Partial* partials) {
  constexpr int64_t pages_a_split = kSplitKeys / kPageKeys;
  int64_t visible = 0;
  for (int64_t r = 0; r < count; r++) {
    clear(partials[r], layout.head_dim);
    visible = std::max(visible, rows[r].visible);
  }
  const int64_t begin = split * pages_a_split;
  const int64_t end = std::min(begin + pages_a_split, (visible + kPageKeys - 1) / kPageKeys);
  switch (layout.kind) {
    case Kind::f32: return add_pages<Kind::f32>(layout, a, head, begin, end, rows, count, partials);
    case Kind::bf16: return add_pages<Kind::bf16>(layout, a, head, begin, end, rows, count, partials);
    default: return add_pages<Kind::int8>(layout, a, head, begin, end, rows, count, partials);
  }
}

void join_into(Partial& all_keys, const Partial& split, int64_t head_dim) {
  if (split.weight == 0.0f) return;  // it saw no key of this split
  const float peak = std::max(all_keys.largest, split.largest);
  const float old_share = exp(all_keys.largest - peak), new_share = exp(split.largest - peak);
  all_keys.largest = peak;
  all_keys.weight = all_keys.weight * old_share + split.weight * new_share;
  for (int64_t d = 0; d < head_dim; d += 16)
    store(all_keys.sum + d, fma(load(split.sum + d), all(new_share), mul(load(all_keys.sum + d), all(old_share))));
}

void finish(const Partial& partial, int64_t head_dim, float* out) {
  const F inverse = all(1.0f / partial.weight);
  for (int64_t d = 0; d < head_dim; d += 16) store(out + d, mul(load(partial.sum + d), inverse));
}

int64_t query_offset(const PageLayout& layout, const AttentionRows& a, int64_t row, int64_t query_head) {
  return (row * a.query_heads + query_head) * layout.head_dim;
}

void attend(const PageLayout& layout, const AttentionRows& a, int64_t head, int64_t row_begin, int64_t row_end) {
  const int64_t group = a.query_heads / layout.heads, count = (row_end - row_begin) * group, width = layout.head_dim;
  std::vector<QueryRow> rows(count);
  std::vector<Partial> totals(count), partials(count);
  std::vector<float> sums(2 * count * width);
  for (int64_t i = 0; i < count; i++) {
    const int64_t row = row_begin + i / group;
    rows[i] = {a.query + query_offset(layout, a, row, head * group + i % group), a.start + row + 1};
    totals[i].sum = sums.data() + 2 * i * width;
    partials[i].sum = totals[i].sum + width;
    clear(totals[i], width);
  }
  const int64_t splits = (a.start + row_end + kSplitKeys - 1) / kSplitKeys;
  for (int64_t split = 0; split < splits; split++) {
    sum_split(layout, a, head, split, rows.data(), count, partials.data());
    for (int64_t i = 0; i < count; i++) join_into(totals[i], partials[i], width);
  }
  for (int64_t i = 0; i < count; i++)
    finish(totals[i], width, a.out + query_offset(layout, a, row_begin + i / group, head * group + i % group));
}

void attend_split(const PageLayout& layout, const AttentionRows& a, int64_t head, int64_t row, int64_t split,
                  Partial* partials) {
  const int64_t group = a.query_heads / layout.heads;
  std::vector<QueryRow> rows(group);
  for (int64_t i = 0; i < group; i++)
    rows[i] = {a.query + query_offset(layout, a, row, head * group + i), a.start + row + 1};
  sum_split(layout, a, head, split, rows.data(), group, partials);
}

void join(const PageLayout& layout, const AttentionRows& a, int64_t head, int64_t row, const Partial* partials,
          int64_t splits) {
  const int64_t group = a.query_heads / layout.heads, width = layout.head_dim;
  std::vector<float> sums(width);
  for (int64_t i = 0; i < group; i++) {
    Partial total{0, 0, sums.data()};
    clear(total, width);
    for (int64_t split = 0; split < splits; split++) join_into(total, partials[split * group + i], width);
    finish(total, width, a.out + query_offset(layout, a, row, head * group + i));
  }
}

}  // namespace

#define FOURBEE_JOINED_(a, b) a##b
#define FOURBEE_JOINED(a, b) FOURBEE_JOINED_(a, b)
#define FOURBEE_STRING_(a) #a
#define FOURBEE_STRING(a) FOURBEE_STRING_(a)

const Kernels FOURBEE_JOINED(kernels_, FOURBEE_ISA_NAME) = {
    FOURBEE_STRING(FOURBEE_ISA_NAME), prepare, multiply, norm, rotate_heads, pack_block, unpack_row,
    store_keys, attend, attend_split, join,
};

}  // namespace fourbee
