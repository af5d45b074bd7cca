// Part of kernels.cpp, which includes it inside its namespaces: rows times packed matrices.

// Rows that are multiplied while the weights of a few blocks stay in the cache.
constexpr int64_t kRowChunk = 192;
// How far ahead the weights are fetched when few rows share them; one stream a block.
constexpr int64_t kPrefetchBytes = 6144;

// What a tile reads: M rows of inputs from `row`, NB blocks of weights from `block`.
struct TileArgs {
  const Product& product;
  int64_t row, block;
  const uint8_t *ahead = nullptr, *ahead_end = nullptr;  // fetched meanwhile: a share of the next blocks
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

// Four columns of NB blocks times those of M rows of inputs, `stride` apart.
template <Kind K, int M, int NB>
inline void add_columns(I (&products)[M][NB], const B (&weights)[NB], const int8_t* inputs, int64_t stride) {
#pragma GCC unroll 8
  for (int m = 0; m < M; m++) {
    const int32_t four = four_bytes(inputs + m * stride);
#pragma GCC unroll 4
    for (int b = 0; b < NB; b++) {
      if constexpr (is_int4(K)) {
        products[m][b] = dot4_small(products[m][b], weights[b], four);
      } else {
        products[m][b] = dot4(products[m][b], weights[b], four);
      }
    }
  }
}

// The zero point costs nothing: the integer sums start at -zero * (sum of the group's inputs).
// Minimums cost one fma a group: each is multiplied by the sum of the group's inputs alone. So do the zero points of
// int4c, which are in sixteenths; its sums are in bases until all groups are done.
template <Kind K, int M, int NB, bool Ahead>
void tile_int(const TileArgs& a) {
  constexpr int32_t kZero = K == Kind::int8 ? 128 : K == Kind::int4 ? 8 : 0;
  constexpr int kColumns = is_int4(K) ? 8 : 4;  // columns of a line
  const Matrix& w = *a.product.matrix;
  const Inputs& in = *a.product.inputs;
  const int64_t columns = w.columns, group = w.group, groups = columns / group, lines = group / kColumns;
  const int8_t* x = reinterpret_cast<const int8_t*>(in.values) + a.row * columns;
  const float* x_scales = in.scales + a.row * groups;
  const int32_t* x_sums = in.sums + a.row * groups;
  const float* x_shifts = in.shifts + a.row * groups;
  const uint8_t *data = w.data + a.block * w.block_bytes, *ahead = a.ahead;
  const int64_t ahead_bytes = ((a.ahead_end - ahead) / groups + 64) & ~int64_t(63);  // a group
  F sums[M][NB];
  for (auto& row : sums)
    for (F& one : row) one = zero();
  for (int64_t g = 0; g < groups; g++) {
    for (const uint8_t* end = std::min(a.ahead_end, ahead + ahead_bytes); ahead < end; ahead += 64) prefetch(ahead);
    I products[M][NB];
#pragma GCC unroll 8
    for (int m = 0; m < M; m++) {
      const I start = all(kZero ? -kZero * x_sums[m * groups + g] : 0);
      for (int b = 0; b < NB; b++) products[m][b] = start;
    }
    const int8_t* inputs = x + g * group;
    for (int64_t s = 0; s < lines; s++) {
      const uint8_t* lines_at = data + s * 64;
      B four_columns[NB];
#pragma GCC unroll 4
      for (int b = 0; b < NB; b++) {
        const uint8_t* at = lines_at + b * w.block_bytes;
        if (Ahead) prefetch(at + kPrefetchBytes);
        four_columns[b] = load_bytes(at);
        if constexpr (is_int4(K)) four_columns[b] = low_halves(four_columns[b]);
      }
      add_columns<K, M, NB>(products, four_columns, inputs + s * kColumns, columns);
      if constexpr (is_int4(K)) {  // loaded once more: kept, the line would take a register of the sums
#pragma GCC unroll 4
        for (int b = 0; b < NB; b++) four_columns[b] = high_halves(load_bytes(lines_at + b * w.block_bytes));
        add_columns<K, M, NB>(products, four_columns, inputs + s * kColumns + 4, columns);
      }
    }
#pragma GCC unroll 4
    for (int b = 0; b < NB; b++) {
      const uint8_t* tail = data + b * w.block_bytes + lines * 64;
      if constexpr (K == Kind::int4c) {
        const F scale = load_u8(tail), zero_code = load_u8(tail + kBlockRows);
#pragma GCC unroll 8
        for (int m = 0; m < M; m++) {
          const F product = fma(zero_code, all(x_shifts[m * groups + g]), to_float(products[m][b]));
          sums[m][b] = fma(product, mul(scale, all(x_scales[m * groups + g])), sums[m][b]);
        }
        continue;
      }
      const F scale = load_f16(reinterpret_cast<const uint16_t*>(tail));
#pragma GCC unroll 8
      for (int m = 0; m < M; m++)
        sums[m][b] = fma(to_float(products[m][b]), mul(scale, all(x_scales[m * groups + g])), sums[m][b]);
      if constexpr (K == Kind::int4a) {
        const F minimum = load_f16(reinterpret_cast<const uint16_t*>(tail) + kBlockRows);
#pragma GCC unroll 8
        for (int m = 0; m < M; m++) {
          const float x_sum = x_scales[m * groups + g] * float(x_sums[m * groups + g]);
          sums[m][b] = fma(minimum, all(x_sum), sums[m][b]);
        }
      }
    }
    data += lines * 64 + kBlockRows * (K == Kind::int4a ? 4 : 2);
  }
  if constexpr (K == Kind::int4c) {
    for (int b = 0; b < NB; b++) {
      const F base = load(reinterpret_cast<const float*>(data + b * w.block_bytes));
      for (int m = 0; m < M; m++) sums[m][b] = mul(sums[m][b], base);
    }
  }
  write_tile<M, NB>(a, sums);
}

template <Kind K, int M, int NB, bool Ahead = false>
void tile(const TileArgs& a) {
  if constexpr (K == Kind::f32) {
    tile_f32<M, NB>(a);
  } else if constexpr (K == Kind::bf16) {
    tile_bf16<M, NB>(a);
  } else {
    tile_int<K, M, NB, Ahead>(a);
  }
}

// Floats: each sum is a chain of its own, so that few rows take four blocks at a time.
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
void multiply_floats(const Product& product, int64_t block_begin, int64_t block_end) {
  const int64_t rows = product.inputs->rows;
  for (int64_t chunk = 0; chunk < rows; chunk += kRowChunk) {
    const int64_t chunk_end = std::min(rows, chunk + kRowChunk);
    for (int64_t block = block_begin; block < block_end;) {
      const int64_t wide = rows <= 2 ? 4 : 2;
      const int64_t several = block_end - block >= wide ? wide : 1;
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

// Rows that read weights as one stream, a block at a time, fetched ahead in it. That is better for as long as reading
// takes longer than multiplying.
template <Kind K>
constexpr int64_t kFewRows = is_int4(K) ? 6 : 8;

template <Kind K>
void few_rows(const TileArgs& a, int64_t rows) {
  switch (rows) {
    case 1: return tile<K, 1, 1, true>(a);
    case 2: return tile<K, 2, 1, true>(a);
    case 3: return tile<K, 3, 1, true>(a);
    case 4: return tile<K, 4, 1, true>(a);
    case 5: return tile<K, 5, 1, true>(a);
    case 6: return tile<K, 6, 1, true>(a);
    case 7: return tile<K, 7, 1, true>(a);
    default: return tile<K, 8, 1, true>(a);
  }
}

// Many rows: tiles of four rows and three blocks, which read least for each product that fits the registers. All rows
// of some blocks fetch the next ones, each tile its share, so that the memory works while they are multiplied.
template <Kind K, int NB>
void many_rows(const TileArgs& a, int64_t rows, bool first) {
  switch (rows) {
    case 1: return tile<K, 1, NB>(a);
    case 2: return tile<K, 2, NB>(a);
    case 3: return tile<K, 3, NB>(a);
    default: return first ? tile<K, 4, NB, true>(a) : tile<K, 4, NB>(a);
  }
}

template <Kind K>
void multiply_integers(const Product& product, int64_t block_begin, int64_t block_end) {
  const int64_t rows = product.inputs->rows;
  if (rows <= kFewRows<K>) {
    for (int64_t block = block_begin; block < block_end; block++) few_rows<K>({product, 0, block}, rows);
    return;
  }
  for (int64_t chunk = 0; chunk < rows; chunk += kRowChunk) {
    const int64_t chunk_rows = std::min(rows - chunk, kRowChunk), tiles = (chunk_rows + 3) / 4;
    for (int64_t block = block_begin; block < block_end;) {
      const int64_t several = std::min<int64_t>(3, block_end - block), next = block + several;
      const uint8_t* ahead = product.matrix->data + next * product.matrix->block_bytes;
      const int64_t size = std::min<int64_t>(3, block_end - next) * product.matrix->block_bytes;
      for (int64_t i = 0; i < tiles; i++) {
        const TileArgs a{product, chunk + 4 * i, block, ahead + size * i / tiles, ahead + size * (i + 1) / tiles};
        const int64_t count = chunk_rows - 4 * i;
        const bool first = i == 0 && block == block_begin;
        switch (several) {
          case 1: many_rows<K, 1>(a, count, first); break;
          case 2: many_rows<K, 2>(a, count, first); break;
          default: many_rows<K, 3>(a, count, first); break;
        }
      }
      block = next;
    }
  }
}

void multiply(const Product& product, int64_t block_begin, int64_t block_end) {
  if (product.inputs->rows == 0) return;
  switch (product.matrix->kind) {
    case Kind::f32: return multiply_floats<Kind::f32>(product, block_begin, block_end);
    case Kind::bf16: return multiply_floats<Kind::bf16>(product, block_begin, block_end);
    case Kind::int8: return multiply_integers<Kind::int8>(product, block_begin, block_end);
    case Kind::int4: return multiply_integers<Kind::int4>(product, block_begin, block_end);
    case Kind::int4a: return multiply_integers<Kind::int4a>(product, block_begin, block_end);
    case Kind::int4c: return multiply_integers<Kind::int4c>(product, block_begin, block_end);
  }
}
