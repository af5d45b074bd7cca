// Part of kernels.cpp, which includes it inside its namespaces: rows times packed matrices.

// Rows that are multiplied while the weights of a few blocks stay in the cache.
constexpr int64_t kRowChunk = 192;
// How far ahead the weights are fetched when few rows share them; one stream a block.
constexpr int64_t kPrefetchBytes = 3072;

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
// Minimums cost one fma a group: each is multiplied by the sum of the group's inputs alone.
template <Kind K, int M, int NB>
void tile_int(const TileArgs& a) {
  constexpr int32_t kZero = K == Kind::int4a ? 0 : K == Kind::int4 ? 8 : 128;
  constexpr int kColumns = is_int4(K) ? 8 : 4;  // columns of a line
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
      if constexpr (is_int4(K)) {
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
      if constexpr (K == Kind::int4a) {
        const F minimum = load_f16(reinterpret_cast<const uint16_t*>(data + b * w.block_bytes + lines * 64) + kBlockRows);
#pragma GCC unroll 8
        for (int m = 0; m < M; m++) {
          const float x_sum = x_scales[m * groups + g] * float(x_sums[m * groups + g]);
          sums[m][b] = fma(minimum, all(x_sum), sums[m][b]);
        }
      }
    }
    data += lines * 64 + kBlockRows * (K == Kind::int4a ? 4 : 2);
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
  constexpr bool integer = is_grouped(K);
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
    case Kind::int4a: return multiply_kind<Kind::int4a>(product, block_begin, block_end);
  }
}
