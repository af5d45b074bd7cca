#include "operations.h"

#include <cmath>

#include "machine.h"

namespace fourbee {
namespace {

bool alike(const Matrix& a, const Matrix& b) {
  const auto inputs = [](Kind kind) { return is_int4(kind) ? Kind::int8 : kind; };
  return inputs(a.kind) == inputs(b.kind) && a.columns == b.columns && a.group == b.group && a.rotated == b.rotated;
}

void multiply(const Matrix& matrix, const Inputs& inputs, float* out, bool add) {
  const Product product{&matrix, &inputs, out, add};
  share(matrix.blocks(), 3, [&](int64_t begin, int64_t end) { machine().kernels->multiply(product, begin, end); });
}

// One task of attention: rows of one sequence and key-value head, or one split of one row's keys.
struct AttentionTask {
  const AttentionRows* rows;
  int64_t head, row_begin, row_end, split, splits;
  Partial* partials;
};

// Positions that one thread stores: int4 keeps two of them in a byte.
constexpr int64_t kStoredTogether = 16;

struct StoreTask {
  uint8_t* const* pages;
  int64_t position, row, count;  // the first position, and its row among those of all sequences
};

// Rows of a prompt that share the reading of its keys.
constexpr int64_t kRowTile = 32;

// Splits of the keys that a single row sees, in order.
std::vector<int64_t> splits_seen(const AttentionRows& rows) {
  std::vector<int64_t> seen;
  const auto add = [&seen](int64_t begin, int64_t end) {
    for (int64_t split = std::max(begin / kSplitKeys, seen.empty() ? 0 : seen.back() + 1); split * kSplitKeys < end; split++)
      seen.push_back(split);
  };
  if (!rows.spans) add(0, rows.start + 1);
  for (int64_t i = 0; rows.spans && i < rows.span_offsets[1] - rows.span_offsets[0]; i++) {
    const Span& span = rows.spans[rows.span_offsets[0] + i];
    add(span.begin, span.end);
  }
  return seen;
}

// The rows of one sequence, the first of them the step's row `first`.
AttentionRows rows_of(const Sequences& sequences, size_t s, int64_t first, int64_t all_rows, int64_t row_size) {
  AttentionRows rows{};
  rows.pages = sequences.pages.data() + sequences.offsets[s];
  rows.start = sequences.starts[s], rows.count = sequences.counts[s];
  if (!sequences.seen_offsets.empty() && sequences.seen_offsets[s] < sequences.seen_offsets[s + 1]) {
    rows.seen = sequences.seen.data() + sequences.seen_offsets[s];
    rows.seen_bytes = (sequences.seen_offsets[s + 1] - sequences.seen_offsets[s]) / (rows.count / kPageKeys);
  }
  if (sequences.span_offsets.empty()) return rows;
  const int64_t* offsets = sequences.span_offsets.data() + first;
  if (offsets[0] == offsets[rows.count]) return rows;
  rows.span_offsets = offsets, rows.spans = sequences.spans.data();
  rows.slopes = sequences.slopes.empty() ? nullptr : sequences.slopes.data();
  rows.variants = sequences.variants, rows.variant_size = all_rows * row_size;
  return rows;
}

}  // namespace

Inputs prepared(const Source& source, int64_t rows, const Matrix& matrix) {
  Machine& m = machine();
  const size_t numbers = size_t(rows * matrix.columns), groups = matrix.group ? numbers / size_t(matrix.group) : 0;
  m.values.resize(std::max(m.values.size(), numbers * (matrix.kind == Kind::f32 ? 4 : matrix.kind == Kind::bf16 ? 2 : 1)));
  m.scales.resize(std::max(m.scales.size(), groups));
  m.sums.resize(std::max(m.sums.size(), groups));
  m.shifts.resize(std::max(m.shifts.size(), groups));
  const Inputs inputs{matrix.kind, rows, matrix.columns, matrix.group, matrix.rotated, m.values.data(), m.scales.data(), m.sums.data(), m.shifts.data()};
  share(rows, 1, [&](int64_t begin, int64_t end) { m.kernels->prepare(source, inputs, begin, end); });
  return inputs;
}

void embed_rows(const Matrix& table, const int64_t* ids, int64_t count, float* out) {
  share(count, 8, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) machine().kernels->unpack_row(table, ids[i], out + i * table.columns);
  });
}

void norm_rows(const Source& source, int64_t rows, int64_t columns, float* out) {
  share(rows, 8, [&](int64_t begin, int64_t end) { machine().kernels->norm(source, out, columns, begin, end); });
}

void linear_rows(const Matrix& matrix, const float* x, int64_t rows, float* out, bool add) {
  multiply(matrix, prepared({x}, rows, matrix), out, add);
}

void norm_linear_rows(const Source& source, int64_t rows, const Matrix* const* matrices, float* const* outs, size_t count) {
  // Matrices that take the same inputs are one job: fewer waits for the last thread.
  for (size_t first = 0, end; first < count; first = end) {
    const Inputs inputs = prepared(source, rows, *matrices[first]);
    int64_t blocks = 0;
    for (end = first; end < count && alike(*matrices[end], *matrices[first]); end++) blocks += matrices[end]->blocks();
    share(blocks, 3, [&](int64_t begin, int64_t stop) {
      int64_t before = 0;  // blocks of the matrices before this one
      for (size_t i = first; i < end; i++) {
        const int64_t own = matrices[i]->blocks(), from = std::max(begin - before, int64_t(0)), to = std::min(stop - before, own);
        if (from < to) machine().kernels->multiply({matrices[i], &inputs, outs[i], false}, from, to);
        before += own;
      }
    });
  }
}

void add_delta(const Source& source, const Delta& delta, float* out) {
  Machine& m = machine();
  for (const LowRank& one : delta) {
    const int64_t columns = one.down->columns, width = one.up->rows;
    m.adapted.resize(std::max(m.adapted.size(), size_t(one.count * (2 * columns + one.down->rows + width))));
    float *x = m.adapted.data(), *gated = x + one.count * columns, *middle = gated + one.count * columns;
    float* added = middle + one.count * one.down->rows;
    for (int64_t i = 0; i < one.count; i++) {
      std::copy_n(source.x + one.rows[i] * columns, columns, x + i * columns);
      if (source.gated) std::copy_n(source.gated + one.rows[i] * columns, columns, gated + i * columns);
    }
    const Source taken{x, source.gated ? gated : nullptr, source.norm, source.eps};
    multiply(*one.down, prepared(taken, one.count, *one.down), middle, false);
    multiply(*one.up, prepared({middle}, one.count, *one.up), added, false);
    for (int64_t i = 0; i < one.count; i++)
      for (int64_t n = 0; n < width; n++) out[one.rows[i] * width + n] += added[i * width + n];
  }
}

void gated_mlp_rows(float* residual, int64_t rows, const float* norm, float eps, const Matrix& gate, const Matrix& up, const Matrix& down,
                    const Delta* deltas) {
  Machine& m = machine();
  m.gate.resize(std::max(m.gate.size(), size_t(rows * gate.rows)));
  m.up.resize(std::max(m.up.size(), size_t(rows * gate.rows)));
  const Matrix* two[] = {&gate, &up};
  float* outs[] = {m.gate.data(), m.up.data()};
  const Source normed{residual, nullptr, norm, eps}, activated{m.gate.data(), m.up.data()};
  norm_linear_rows(normed, rows, two, outs, 2);
  for (int i = 0; deltas && i < 2; i++) add_delta(normed, deltas[i], outs[i]);
  multiply(down, prepared(activated, rows, down), residual, true);
  if (deltas) add_delta(activated, deltas[2], residual);
}

void rotate_rows(const HeadRotation& rotation, int64_t rows) {
  share(rows, 8, [&](int64_t begin, int64_t end) { machine().kernels->rotate_heads(rotation, begin, end); });
}

void attend_rows(const PageLayout& layout, const Sequences& sequences, int64_t layer, int64_t query_heads,
                 const float* query, const float* key, const float* value, float* out) {
  Machine& m = machine();
  const int64_t width = layout.head_dim, group = query_heads / layout.heads;
  std::vector<AttentionRows> parts;
  std::vector<std::vector<int64_t>> splits;  // of single rows
  size_t needed = 0;
  int64_t first = 0, all_rows = 0;
  for (const int64_t count : sequences.counts) all_rows += count;
  std::vector<StoreTask> stores;
  for (size_t s = 0; s < sequences.counts.size(); s++) {
    AttentionRows part = rows_of(sequences, s, first, all_rows, query_heads * width);
    part.query = query + first * query_heads * width, part.out = out + first * query_heads * width;
    part.query_heads = query_heads, part.layer = layer, part.scale = 1.0f / std::sqrt(float(width));
    parts.push_back(part);
    splits.push_back(part.count == 1 ? splits_seen(part) : std::vector<int64_t>());
    if (splits.back().size() == 1) splits.back().clear();  // one task does it all
    needed += splits.back().size() * size_t(layout.heads * group);
    for (int64_t row = 0, end; row < part.count; row = end) {
      end = std::min(part.count, row + kStoredTogether - (part.start + row) % kStoredTogether);
      stores.push_back({part.pages, part.start + row, first + row, end - row});
    }
    first += part.count;
  }
  m.pool->run(int64_t(stores.size()), [&](int64_t i) {
    const StoreTask& task = stores[size_t(i)];
    for (int64_t row = 0; row < task.count; row++) {
      const int64_t from = (task.row + row) * layout.heads * width;
      m.kernels->store_keys(layout, task.pages, layer, task.position + row, key + from, value + from);
    }
  });

  m.partials.resize(std::max(m.partials.size(), needed));
  m.partial_sums.resize(std::max(m.partial_sums.size(), needed * size_t(width)));
  for (size_t i = 0; i < needed; i++) m.partials[i].sum = m.partial_sums.data() + i * size_t(width);
  std::vector<AttentionTask> tasks, joins;
  Partial* next = m.partials.data();
  for (size_t s = 0; s < parts.size(); s++)
    for (int64_t head = 0; head < layout.heads; head++) {
      const AttentionRows& part = parts[s];
      if (!splits[s].empty()) {
        const int64_t count = int64_t(splits[s].size());
        joins.push_back({&part, head, 0, 1, 0, count, next});
        for (const int64_t split : splits[s]) {
          tasks.push_back({&part, head, 0, 1, split, count, next});
          next += group;
        }
      } else {
        for (int64_t row = 0; row < part.count; row += kRowTile)
          tasks.push_back({&part, head, row, std::min(part.count, row + kRowTile), 0, 0, nullptr});
      }
    }
  m.pool->run(int64_t(tasks.size()), [&](int64_t i) {
    const AttentionTask& task = tasks[size_t(i)];
    if (task.partials) {
      m.kernels->attend_split(layout, *task.rows, task.head, task.row_begin, task.split, task.partials);
    } else {
      m.kernels->attend(layout, *task.rows, task.head, task.row_begin, task.row_end);
    }
  });
  m.pool->run(int64_t(joins.size()), [&](int64_t i) {
    const AttentionTask& task = joins[size_t(i)];
    m.kernels->join(layout, *task.rows, task.head, task.row_begin, task.partials, task.splits);
  });
}

}  // namespace fourbee
