// Heads, pages and attention, as Python calls them.
#include <cmath>

#include "kv_pool.h"
#include "machine.h"

namespace fourbee {
namespace {

void rotate_heads(InHeads x, InVector norm, float eps, InRows cos, InRows sin, Heads out) {
  const int64_t rows = int64_t(x.shape(0)), head_dim = int64_t(x.shape(2));
  require(head_dim % 2 == 0, "head_dim: expected an even number");
  require_equal("norm", int64_t(norm.shape(0)), head_dim);
  for (const InRows* table : {&cos, &sin}) {
    require_equal("rows of the rotary table", int64_t(table->shape(0)), rows);
    require_equal("columns of the rotary table", int64_t(table->shape(1)), head_dim / 2);
  }
  for (int i = 0; i < 3; i++) require_equal("shape of out", int64_t(out.shape(i)), int64_t(x.shape(i)));
  nb::gil_scoped_release release;
  std::lock_guard lock(machine().busy);
  const HeadRotation rotation{x.data(), norm.data(), cos.data(), sin.data(), eps, int64_t(x.shape(1)), head_dim, out.data()};
  share(rows, 8, [&](int64_t begin, int64_t end) { machine().kernels->rotate_heads(rotation, begin, end); });
}

// One task of attention: rows of one sequence and key-value head, or one split of one row's keys.
struct AttentionTask {
  const AttentionRows* rows;
  int64_t head, row_begin, row_end, split, splits;
  Partial* partials;
};

// Rows of a prompt that share the reading of its keys.
constexpr int64_t kRowTile = 32;

// Causal attention of one layer. Sequence s has counts[s] rows, the first at position starts[s],
// and pages[page_offsets[s]] .. pages[page_offsets[s + 1] - 1]. Stores keys and values first.
void attend(KvPool& pool, int64_t layer, InHeads query, InHeads key, InHeads value, Integers counts, Integers starts,
            Integers page_offsets, Integers pages, Heads out) {
  const PageLayout& layout = pool.layout();
  const int64_t rows = int64_t(query.shape(0)), query_heads = int64_t(query.shape(1)), width = layout.head_dim;
  const int64_t sequences = int64_t(counts.shape(0));
  require(layer >= 0 && layer < pool.layers(), "layer " + std::to_string(layer) + ": the pages have " + std::to_string(pool.layers()));
  require_equal("head_dim of the query", int64_t(query.shape(2)), width);
  require(query_heads > 0 && query_heads % layout.heads == 0, "query heads: expected a multiple of the key-value heads");
  for (const InHeads* one : {&key, &value}) {
    require_equal("rows of keys and values", int64_t(one->shape(0)), rows);
    require_equal("heads of keys and values", int64_t(one->shape(1)), layout.heads);
    require_equal("head_dim of keys and values", int64_t(one->shape(2)), width);
  }
  for (int i = 0; i < 3; i++) require_equal("shape of out", int64_t(out.shape(i)), int64_t(query.shape(i)));
  require_equal("starts", int64_t(starts.shape(0)), sequences);
  require_equal("page_offsets", int64_t(page_offsets.shape(0)), sequences + 1);
  std::vector<uint8_t*> bases(pages.shape(0));
  for (size_t i = 0; i < pages.shape(0); i++) bases[i] = pool.page(pages(i));
  std::vector<AttentionRows> parts(static_cast<size_t>(sequences));
  int64_t first = 0;
  for (int64_t s = 0; s < sequences; s++) {
    const int64_t count = counts(s), start = starts(s), begin = page_offsets(s), end = page_offsets(s + 1);
    require(count >= 0 && count <= rows - first && start >= 0 && start <= int64_t(1) << 40, "counts and starts: out of range");
    require(begin >= 0 && begin <= end && end <= int64_t(bases.size()), "page_offsets: out of range");
    require((end - begin) * kPageKeys >= start + count, "pages: fewer than the positions need");
    parts[size_t(s)] = {query.data() + first * query_heads * width, out.data() + first * query_heads * width,
                        bases.data() + begin, start, count, query_heads, layer, 1.0f / std::sqrt(float(width))};
    first += count;
  }
  require_equal("counts, summed up", first, rows);

  nb::gil_scoped_release release;
  Machine& m = machine();
  std::lock_guard lock(m.busy);
  first = 0;
  for (const AttentionRows& part : parts) {
    share(part.count, 16, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; row++) {
        const int64_t at = (first + row) * layout.heads * width;
        m.kernels->store_keys(layout, part.pages, layer, part.start + row, key.data() + at, value.data() + at);
      }
    });
    first += part.count;
  }

  std::vector<AttentionTask> tasks, joins;
  const int64_t group = query_heads / layout.heads;
  size_t needed = 0;
  for (const AttentionRows& part : parts)
    if (part.count == 1) needed += size_t(layout.heads * ((part.start + kSplitKeys) / kSplitKeys) * group);
  std::vector<Partial> partials(needed);
  std::vector<float> sums(needed * size_t(width));
  for (size_t i = 0; i < needed; i++) partials[i].sum = sums.data() + i * size_t(width);
  Partial* next = partials.data();
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
  for (const AttentionTask& task : joins)
    m.kernels->join(layout, *task.rows, task.head, task.row_begin, task.partials, task.splits);
}

}  // namespace

void bind_attention(nb::module_& module) {
  nb::class_<KvPool>(module, "KvPool")
      .def("__init__", [](KvPool* self, int64_t layers, int64_t heads, int64_t head_dim, const std::string& kind) {
        require(layers > 0 && layers <= 4096 && heads > 0 && heads <= 4096, "layers and heads: expected from 1 to 4096");
        require(head_dim > 0 && head_dim <= 4096 && head_dim % 16 == 0, "head_dim: expected a multiple of 16");
        require(kind != "int4", "kind = 'int4': expected one of f32, bf16, int8");
        new (self) KvPool(layers, heads, head_dim, kind_named(kind));
      }, nb::arg("layers"), nb::arg("heads"), nb::arg("head_dim"), nb::arg("kind"))
      .def("allocate", &KvPool::allocate)
      .def("release", &KvPool::release, nb::arg("page"))
      .def("copy", &KvPool::copy, nb::arg("source"), nb::arg("target"))
      .def_prop_ro("used", &KvPool::used)
      .def_prop_ro("page_bytes", &KvPool::page_bytes);
  module.def("rotate_heads", &rotate_heads, nb::arg("x"), nb::arg("norm"), nb::arg("eps"), nb::arg("cos"), nb::arg("sin"), nb::arg("out"));
  module.def("attend", &attend, nb::arg("pool"), nb::arg("layer"), nb::arg("query"), nb::arg("key"), nb::arg("value"),
             nb::arg("counts"), nb::arg("starts"), nb::arg("page_offsets"), nb::arg("pages"), nb::arg("out"));
}

}  // namespace fourbee
