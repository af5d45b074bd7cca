// The operations on plain pointers: what the binding's entries and recorded plans both call. Whoever calls has
// checked the shapes, holds `machine().busy` and has let go of the interpreter's lock.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels.h"
#include "kv_pool.h"

namespace fourbee {

// Rows made ready for matrices of this kind; in `machine()`'s memory until the next call.
Inputs prepared(const Source& source, int64_t rows, const Matrix& matrix);
// What an adapter adds to one product (LoRA): out += up (down input), of `rows`, which ascend.
struct LowRank {
  const Matrix *down, *up;
  const int64_t* rows;
  int64_t count;
};
using Delta = std::vector<LowRank>;

void embed_rows(const Matrix& table, const int64_t* ids, int64_t count, float* out);
void norm_rows(const Source& source, int64_t rows, int64_t columns, float* out);
void linear_rows(const Matrix& matrix, const float* x, int64_t rows, float* out, bool add);
// RMSNorm once, then each matrix; inputs are made ready anew only where the kind of matrix changes.
void norm_linear_rows(const Source& source, int64_t rows, const Matrix* const* matrices, float* const* outs, size_t count);
// residual += down(silu(gate(norm(residual))) * up(norm(residual))); `deltas` are those of gate, up and down, or null.
void gated_mlp_rows(float* residual, int64_t rows, const float* norm, float eps, const Matrix& gate, const Matrix& up, const Matrix& down,
                    const Delta* deltas = nullptr);
// Adds to products of `source` what adapters add. A row's bits depend on that row and its adapters alone.
void add_delta(const Source& source, const Delta& delta, float* out);
void rotate_rows(const HeadRotation& rotation, int64_t rows);

// The sequences of a step; `pages` holds their pages' bases, a sequence after the other.
struct Sequences {
  std::vector<uint8_t*> pages;
  std::vector<int64_t> counts, starts, offsets;
  // What rows see where it is not all keys up to their own: AttentionRows says how to read them. A sequence whose rows
  // have no spans is plain.
  std::vector<Span> spans;
  std::vector<int64_t> span_offsets;  // one more than there are rows; empty where all sequences are plain
  std::vector<float> slopes;          // of each query head; empty for none, and unused by plain sequences
  int64_t variants = 1;
  // Of plain sequences in whole pages: AttentionRows' `seen` of sequence s from seen_offsets[s] on, where that is not
  // seen_offsets[s + 1]. Empty where all see all.
  std::vector<uint8_t> seen;
  std::vector<int64_t> seen_offsets;
};

// Attention of one layer: stores keys and values [T, G, K] first, then attends with query [variants, T, H, K].
void attend_rows(const PageLayout& layout, const Sequences& sequences, int64_t layer, int64_t query_heads,
                 const float* query, const float* key, const float* value, float* out);

}  // namespace fourbee
