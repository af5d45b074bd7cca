// The table of kernels that every instruction set fills: plain C structures, no Python.
// Kernels work on ranges (of rows, blocks, tasks) so that the thread pool can share them out;
// what a range computes does not depend on how the work was cut.
#pragma once
#include <cstdint>

namespace fourbee {

constexpr int64_t kBlockRows = 16;  // output rows of a packed block
constexpr int64_t kPageKeys = 64;   // positions of a page of keys and values
constexpr int64_t kSplitKeys = 512; // keys that are summed up before sums are joined
constexpr int64_t kLongestDocument = 1024;  // of attention in training, which holds the scores of a document
constexpr int64_t kGradientRows = 64; // rows whose share of a gradient is summed up before sums are joined
constexpr int64_t kHeadColumns = 1536;    // of a row of logits that are summed up before sums are joined
constexpr int64_t kMaximaColumns = 64;    // that share a maximum, by which the likeliest are found

// int4a is int4 with a minimum beside every scale (affine); int4c has codes of a byte for scales and zero points.
enum class Kind : int32_t { f32, bf16, int8, int4, int4a, int4c };

constexpr bool is_int4(Kind kind) { return kind == Kind::int4 || kind == Kind::int4a || kind == Kind::int4c; }
constexpr bool is_grouped(Kind kind) { return kind == Kind::int8 || is_int4(kind); }

// A packed matrix; its bytes are described in fourbee/kernels/packed.py.
struct Matrix {
  Kind kind;
  int64_t rows, columns, group, block_bytes;
  bool rotated;
  const uint8_t* data;
  int64_t blocks() const { return (rows + kBlockRows - 1) / kBlockRows; }
  // After the lines of each group: its scales and minimums, or the codes of scales and zero points.
  int64_t scale_bytes() const { return kBlockRows * (kind == Kind::int4a ? 4 : 2); }
  // After all groups: what scale codes of int4c are multiplied with, a float32 a row.
  int64_t base_bytes() const { return kind == Kind::int4c ? kBlockRows * 4 : 0; }
};

// Rows made ready for one kind of matrix. f32 and bf16: values. All others: int8 values with a
// scale and the sum of the values, both [rows, groups]; `shifts` are -sum / 16, for zero points in sixteenths.
struct Inputs {
  Kind kind;
  int64_t rows, columns, group;
  bool rotated;
  uint8_t* values;
  float* scales;
  int32_t* sums;
  float* shifts;
};

// Where the rows come from: `x`; or RMSNorm of x; or silu(x) * gated.
struct Source {
  const float* x;
  const float* gated = nullptr;  // SwiGLU's other half
  const float* norm = nullptr;   // RMSNorm's weight
  float eps = 0;
};

struct Product {
  const Matrix* matrix;
  const Inputs* inputs;
  float* out;  // [rows, matrix->rows]
  bool add;    // to what is there (the residual)
};

struct HeadRotation {
  const float* x;     // [T, heads, K]
  const float* norm;  // [K]
  const float* cos;   // [T, K/2]
  const float* sin;
  float eps;
  int64_t heads, head_dim;
  float* out;
};

// Gradients of RMSNorm: `grad` is that of its result. `grad_norm` has a row for each kGradientRows rows.
struct NormGradient {
  const float *x, *norm, *grad;
  float eps;
  int64_t rows, columns;
  float *grad_x, *grad_norm;
};

// Documents of a pack, rows one after another: [T, heads, K] each. Document i begins at starts[i].
struct DocumentRows {
  const float *query, *key, *value;
  int64_t query_heads, heads, head_dim;
  const int64_t* starts;
  float scale;
  float* out;
};

// `grad` is that of the result, the others are written.
struct DocumentGradients {
  const float* grad;
  float *query, *key, *value;
};

// One layer of the pages: page p of a sequence starts at bases[p].
struct PageLayout {
  Kind kind;  // f32, bf16, int8 or int4
  int64_t heads, head_dim;
  int64_t group;        // dimensions of a head that share a scale and a minimum; 0 where kind is not int4
  int64_t head_bytes;   // keys and values of one head in one layer of a page
  int64_t layer_bytes;  // of all heads
  int64_t groups() const { return group ? head_dim / group : 0; }
};

// Keys [begin, end) of a sequence, scored with one variant of the query.
struct Span {
  int64_t begin, end, variant;
};

struct AttentionRows {
  const float* query;   // [count, query_heads, K]
  float* out;           // same
  uint8_t* const* pages;  // page i holds positions 64 i .. 64 i + 63
  int64_t start;        // position of the first row
  int64_t count, query_heads, layer;
  float scale;
  // Of row i the spans from span_offsets[i] to span_offsets[i + 1]: ascending, disjoint, none empty. Null where every
  // row sees all keys up to its own.
  const int64_t* span_offsets = nullptr;
  const Span* spans = nullptr;
  const float* slopes = nullptr;  // ALiBi's, a query head each; null for none
  int64_t variants = 1, variant_size = 0;  // floats from one variant of the query to the next
  // Of each kPageKeys rows the pages that they see, a bit each, where `start` and `count` are whole pages; null for all.
  const uint8_t* seen = nullptr;
  int64_t seen_bytes = 0;  // from one page of rows to the next
};

// The softmax-weighted sum over some keys, not yet divided: largest score, weights' sum, sum [K].
struct Partial {
  float largest, weight;
  float* sum;
};

// A part of a row of logits: the largest, the sum of e^(logit - largest), and whether there is neither NaN nor +inf.
struct LogitScan {
  float largest, weight;
  bool finite;
};

struct LikelyToken {
  float logit;
  int32_t id;
};

// Noise added to logits: (logit - peak) / temperature + Gumbel noise under a key; tokens less than min_p times as
// likely as the likeliest do not count.
struct NoisyRow {
  float peak, temperature, min_p;
  uint64_t key;
};

struct NoisyToken {
  double noisy;
  int64_t id;
};

struct Kernels {
  const char* name;
  void (*prepare)(const Source&, const Inputs&, int64_t row_begin, int64_t row_end);
  void (*multiply)(const Product&, int64_t block_begin, int64_t block_end);
  void (*norm)(const Source&, float* out, int64_t columns, int64_t row_begin, int64_t row_end);
  void (*rotate_heads)(const HeadRotation&, int64_t row_begin, int64_t row_end);
  // 16 rows `[16, columns]` into one block; rotates them in place where the matrix is rotated.
  void (*pack_block)(const Matrix&, bool searched, float* rows, uint8_t* block);
  void (*unpack_row)(const Matrix&, int64_t row, float* out);
  void (*store_keys)(const PageLayout&, uint8_t* const* pages, int64_t layer, int64_t position,
                     const float* key, const float* value);
  // Rows [row_begin, row_end) of one key-value head, all their keys.
  void (*attend)(const PageLayout&, const AttentionRows&, int64_t head, int64_t row_begin, int64_t row_end);
  // One row's query heads over one split of the keys; partials of `group` query heads.
  void (*attend_split)(const PageLayout&, const AttentionRows&, int64_t head, int64_t row, int64_t split, Partial* partials);
  void (*join)(const PageLayout&, const AttentionRows&, int64_t head, int64_t row, const Partial* partials, int64_t splits);
  // Also writes the maximum of every kMaximaColumns.
  void (*scan_logits)(const float* logits, int64_t count, float* maxima, LogitScan* scan);
  // The sum of e^((logit - peak) / temperature).
  float (*scaled_mass)(const float* logits, int64_t count, float peak, float temperature);
  // Those that are at least `least`, in order; ids count from `first`. Returns how many.
  int64_t (*gather_logits)(const float* logits, int64_t count, float least, int64_t first, LikelyToken* tokens);
  // Into `best` where one is more.
  void (*sample_logits)(const NoisyRow&, const float* logits, int64_t count, int64_t first, NoisyToken* best);
  // Of one block of kGradientRows rows; in the second they are heads, and the rotation goes backwards first.
  void (*norm_gradient)(const NormGradient&, int64_t block);
  void (*head_gradient)(const HeadRotation&, const NormGradient&, int64_t block);
  void (*swiglu)(const float* gate, const float* up, int64_t count, float* out);
  void (*swiglu_gradient)(float* gate, float* up, float* inner, int64_t count);
  // Of one document and key-value head.
  void (*attend_document)(const DocumentRows&, int64_t document, int64_t head);
  void (*document_gradient)(const DocumentRows&, const DocumentGradients&, int64_t document, int64_t head);
  int32_t (*spin_int8)(int64_t turns);
  int32_t (*spin_bf16)(int64_t turns);
  int32_t (*read_bytes)(const uint8_t* data, int64_t size);
};

extern const Kernels kernels_portable;
#if defined(__x86_64__) || defined(_M_X64)
extern const Kernels kernels_avx2, kernels_avx512;
#elif defined(__aarch64__)
extern const Kernels kernels_neon;
#endif

}  // namespace fourbee
