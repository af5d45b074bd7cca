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

// Rows of a prompt that share the reading of its keys.
constexpr int64_t kRowTile = 32;

}  // namespace

Inputs prepared(const Source& source, int64_t rows, const Matrix& matrix) {
  Machine& m = machine();
  const size_t numbers = size_t(rows * matrix.columns), groups = matrix.group ? numbers / size_t(matrix.group) : 0;
  m.values.resize(std::max(m.values.size(), numbers * (matrix.kind == Kind::f32 ? 4 : matrix.kind == Kind::bf16 ? 2 : 1)));
  m.scales.resize(std::max(m.scales.size(), groups));
  m.sums.resize(std::max(m.sums.size(), groups));
  const Inputs inputs{matrix.kind, rows, matrix.columns, matrix.group, matrix.rotated, m.values.data(), m.scales.data(), m.sums.data()};
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

void gated_mlp_rows(float* residual, int64_t rows, const float* norm, float eps, const Matrix& gate, const Matrix& up, const Matrix& down) {
  Machine& m = machine();
  m.gate.resize(std::max(m.gate.size(), size_t(rows * gate.rows)));
  m.up.resize(std::max(m.up.size(), size_t(rows * gate.rows)));
  const Matrix* two[] = {&gate, &up};
  float* outs[] = {m.gate.data(), m.up.data()};
  norm_linear_rows({residual, nullptr, norm, eps}, rows, two, outs, 2);
  const Inputs inputs = prepared({m.gate.data(), m.up.data()}, rows, down);
  multiply(down, inputs, residual, true);
}

void rotate_rows(const HeadRotation& rotation, int64_t rows) {
  share(rows, 8, [&](int64_t begin, int64_t end) { machine().kernels->rotate_heads(rotation, begin, end); });
}

void attend_rows(const PageLayout& layout, const Sequences& sequences, int64_t layer, int64_t query_heads,
                 const float* query, const float* key, const float* value, float* out) {
  Machine& m = machine();
  const int64_t width = layout.head_dim, group = query_heads / layout.heads;
  std::vector<AttentionRows> parts;
  size_t needed = 0;
  int64_t first = 0;
  for (size_t s = 0; s < sequences.counts.size(); s++) {
    const int64_t count = sequences.counts[s], start = sequences.starts[s], at = first * query_heads * width;
    uint8_t* const* pages = sequences.pages.data() + sequences.offsets[s];
    parts.push_back({query + at, out + at, pages, start, count, query_heads, layer, 1.0f / std::sqrt(float(width))});
    if (count == 1) needed += size_t(layout.heads * ((start + kSplitKeys) / kSplitKeys) * group);
    share(count, 16, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; row++) {
        const int64_t from = (first + row) * layout.heads * width;
        m.kernels->store_keys(layout, pages, layer, start + row, key + from, value + from);
      }
    });
    first += count;
  }

  m.partials.resize(std::max(m.partials.size(), needed));
  m.partial_sums.resize(std::max(m.partial_sums.size(), needed * size_t(width)));
  for (size_t i = 0; i < needed; i++) m.partials[i].sum = m.partial_sums.data() + i * size_t(width);
  std::vector<AttentionTask> tasks, joins;
  Partial* next = m.partials.data();
  for (const AttentionRows& part : parts)
    for (int64_t head = 0; head < layout.heads; head++) {
      if (part.count == 1) {
        const int64_t splits = (part.start + kSplitKeys) / kSplitKeys;
        joins.push_back({&part, head, 0, 1, 0, splits, next});
        for (int64_t split = 0; split < splits; split++, next += group) tasks.push_back({&part, head, 0, 1, split, splits, next});
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
