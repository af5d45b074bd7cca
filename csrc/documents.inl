// Part of kernels.cpp, which includes it inside its namespaces: causal attention inside the documents of a pack, and its
// gradients, for training. A task is a document and a key-value head, whose scores are held whole: documents are short here
// (longer ones are torch's).

// out[i][0..15] (+)= sum over n of a[i][n] * b[n][0..15] for `Rows` rows.
template <int Rows>
inline void tile(const float* a, int64_t a_row, int64_t a_step, const float* b, int64_t b_step, int64_t count, float* out, int64_t out_row, bool more) {
  F sums[Rows];
#pragma GCC unroll 8
  for (int i = 0; i < Rows; i++) sums[i] = more ? load(out + i * out_row) : zero();
  for (int64_t n = 0; n < count; n++) {
    const F line = load(b + n * b_step);
#pragma GCC unroll 8
    for (int i = 0; i < Rows; i++) sums[i] = fma(all(a[i * a_row + n * a_step]), line, sums[i]);
  }
#pragma GCC unroll 8
  for (int i = 0; i < Rows; i++) store(out + i * out_row, sums[i]);
}

// As many rows as there are registers for, so that products need not wait for sums.
#if defined(__AVX512F__)
constexpr int kTileRows = 8;
#elif defined(__AVX2__)
constexpr int kTileRows = 6;
#else
constexpr int kTileRows = 4;
#endif

// The tile of so many rows, at most `Rows`.
template <int Rows>
inline void tile_of(int64_t rows, const float* a, int64_t a_row, int64_t a_step, const float* b, int64_t b_step, int64_t count, float* out, int64_t out_row, bool more) {
  if (rows >= Rows) return tile<Rows>(a, a_row, a_step, b, b_step, count, out, out_row, more);
  if constexpr (Rows > 1) tile_of<Rows - 1>(rows, a, a_row, a_step, b, b_step, count, out, out_row, more);
}

// Rows [0, rows) of a product whose row tile at `row` takes `lanes(row)` columns of 16 and the terms of `terms(row)`,
// a pair of first and end. a and b are strided: of rows, of terms.
struct Strided {
  const float* data;
  int64_t row, step;
};

template <typename Lanes, typename Terms>
void multiply_tiles(const Strided& a, const Strided& b, int64_t rows, float* out, int64_t out_row, bool more, Lanes lanes, Terms terms) {
  for (int64_t row = 0; row < rows; row += kTileRows) {
    const auto [first, end] = terms(row);
    const float* from = a.data + row * a.row + first * a.step;
    for (int64_t lane = 0; lane < lanes(row); lane += 16) {
      const float* line = b.data + first * b.step + lane;
      float* to = out + row * out_row + lane;
      tile_of<kTileRows>(rows - row, from, a.row, a.step, line, b.step, end - first, to, out_row, more);
    }
  }
}

// [rows, columns] with `row` floats from one to the next, as [columns, width]; what is beyond `rows` is 0.
void transpose(const float* x, int64_t rows, int64_t columns, int64_t row, float* out, int64_t width) {
  for (int64_t d = 0; d < columns; d++) {
    float* line = out + d * width;
    for (int64_t j = 0; j < rows; j++) line[j] = x[j * row + d];
    std::fill(line + rows, line + width, 0.0f);
  }
}

// One document and head: what both passes need.
struct Document {
  int64_t length, width, head_dim;  // width: the length in whole vectors
  std::vector<float> turned, scores, gradients;

  Document(int64_t length, int64_t head_dim) : length(length), width((length + 15) / 16 * 16), head_dim(head_dim), turned(size_t(width * head_dim)), scores(size_t(length * width)) {}

  // The end of the keys, in whole vectors, that some row of this row's tile sees.
  int64_t seen_end(int64_t row) const { return std::min(width, (row / kTileRows * kTileRows + kTileRows + 15) / 16 * 16); }

  auto seen_lanes() const {
    return [this](int64_t row) { return seen_end(row); };
  }
  auto whole_head() const {
    return [this](int64_t) { return head_dim; };
  }
  auto all_dims() const {
    return [this](int64_t) { return std::pair<int64_t, int64_t>(0, head_dim); };
  }
  auto seen_keys() const {
    return [this](int64_t row) { return std::pair<int64_t, int64_t>(0, std::min(length, row + kTileRows)); };
  }
  auto seen_by() const {
    return [this](int64_t row) { return std::pair<int64_t, int64_t>(row, length); };
  }

  // The weights of all keys for one query head, 0 for those that a row does not see; `turned` holds the keys.
  void weigh(const float* query, int64_t query_row, float scale) {
    multiply_tiles({query, query_row, 1}, {turned.data(), 0, width}, length, scores.data(), width, false, seen_lanes(), all_dims());
    for (int64_t row = 0; row < length; row++) {
      float* line = scores.data() + row * width;
      const int64_t end = seen_end(row);
      std::fill(line + row + 1, line + end, kLowest);
      F top = all(kLowest), total = zero();
      for (int64_t j = 0; j < end; j += 16) top = max(top, load(line + j));
      const F shift = all(largest(top)), factor = all(scale);
      for (int64_t j = 0; j < end; j += 16) store(line + j, exp(mul(sub(load(line + j), shift), factor)));
      std::fill(line + row + 1, line + end, 0.0f);
      for (int64_t j = 0; j < end; j += 16) total = add(total, load(line + j));
      const F inverse = all(1.0f / sum(total));
      for (int64_t j = 0; j < end; j += 16) store(line + j, mul(load(line + j), inverse));
    }
  }

  // Scores' gradients from those of the weights, which are in `gradients`.
  void through_softmax(float scale) {
    for (int64_t row = 0; row < length; row++) {
      const float* weights = scores.data() + row * width;
      float* line = gradients.data() + row * width;
      const int64_t end = seen_end(row);
      F along = zero();
      for (int64_t j = 0; j < end; j += 16) along = fma(load(weights + j), load(line + j), along);
      const F mean = all(sum(along)), factor = all(scale);
      for (int64_t j = 0; j < end; j += 16) store(line + j, mul(mul(load(weights + j), sub(load(line + j), mean)), factor));
    }
  }
};

void attend_document(const DocumentRows& d, int64_t document, int64_t head) {
  const int64_t first = d.starts[document], length = d.starts[document + 1] - first, group = d.query_heads / d.heads;
  const int64_t query_row = d.query_heads * d.head_dim, key_row = d.heads * d.head_dim;
  const int64_t at_key = first * key_row + head * d.head_dim;
  Document own(length, d.head_dim);
  transpose(d.key + at_key, length, d.head_dim, key_row, own.turned.data(), own.width);
  for (int64_t h = head * group; h < (head + 1) * group; h++) {
    const int64_t at = first * query_row + h * d.head_dim;
    own.weigh(d.query + at, query_row, d.scale);
    multiply_tiles({own.scores.data(), own.width, 1}, {d.value + at_key, 0, key_row}, length, d.out + at, query_row, false, own.whole_head(), own.seen_keys());
  }
}

void document_gradient(const DocumentRows& d, const DocumentGradients& g, int64_t document, int64_t head) {
  const int64_t first = d.starts[document], length = d.starts[document + 1] - first, group = d.query_heads / d.heads;
  const int64_t query_row = d.query_heads * d.head_dim, key_row = d.heads * d.head_dim;
  const int64_t at_key = first * key_row + head * d.head_dim;
  Document own(length, d.head_dim);
  own.gradients.resize(own.scores.size());
  std::vector<float> values(own.turned.size());
  transpose(d.key + at_key, length, d.head_dim, key_row, own.turned.data(), own.width);
  transpose(d.value + at_key, length, d.head_dim, key_row, values.data(), own.width);
  for (int64_t h = head * group; h < (head + 1) * group; h++) {
    const bool more = h > head * group;
    const int64_t at = first * query_row + h * d.head_dim;
    own.weigh(d.query + at, query_row, d.scale);
    multiply_tiles({own.scores.data(), 1, own.width}, {g.grad + at, 0, query_row}, length, g.value + at_key, key_row, more, own.whole_head(), own.seen_by());
    multiply_tiles({g.grad + at, query_row, 1}, {values.data(), 0, own.width}, length, own.gradients.data(), own.width, false, own.seen_lanes(), own.all_dims());
    own.through_softmax(d.scale);
    multiply_tiles({own.gradients.data(), own.width, 1}, {d.key + at_key, 0, key_row}, length, g.query + at, query_row, false, own.whole_head(), own.seen_keys());
    multiply_tiles({own.gradients.data(), 1, own.width}, {d.query + at, 0, query_row}, length, g.key + at_key, key_row, more, own.whole_head(), own.seen_by());
  }
}
