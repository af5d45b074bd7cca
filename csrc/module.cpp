// fourbee.kernels._native: what Python sees of the kernels. Every entry checks its shapes and
// integers before it touches memory, and lets go of the interpreter's lock while it computes.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstdlib>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>

#include "kernels.h"
#include "kv_pool.h"
#include "pool.h"

namespace nb = nanobind;
using namespace fourbee;

namespace {

using Vector = nb::ndarray<float, nb::numpy, nb::shape<-1>, nb::c_contig, nb::device::cpu>;
using Rows = nb::ndarray<float, nb::numpy, nb::shape<-1, -1>, nb::c_contig, nb::device::cpu>;
using Heads = nb::ndarray<float, nb::numpy, nb::shape<-1, -1, -1>, nb::c_contig, nb::device::cpu>;
using InVector = nb::ndarray<const float, nb::numpy, nb::shape<-1>, nb::c_contig, nb::device::cpu>;
using InRows = nb::ndarray<const float, nb::numpy, nb::shape<-1, -1>, nb::c_contig, nb::device::cpu>;
using InHeads = nb::ndarray<const float, nb::numpy, nb::shape<-1, -1, -1>, nb::c_contig, nb::device::cpu>;
using Integers = nb::ndarray<const int64_t, nb::numpy, nb::shape<-1>, nb::c_contig, nb::device::cpu>;
using Bytes = nb::ndarray<const uint8_t, nb::numpy, nb::shape<-1, -1>, nb::c_contig, nb::device::cpu>;

void require(bool right, const std::string& message) {
  if (!right) throw std::invalid_argument(message);
}

void require_equal(const char* what, int64_t found, int64_t expected) {
  if (found != expected)
    throw std::invalid_argument(std::string(what) + " = " + std::to_string(found) + ": expected " + std::to_string(expected));
}

// ---- which instruction set -------------------------------------------------------------------

std::vector<const Kernels*> supported() {
  std::vector<const Kernels*> found{&kernels_portable};
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
    found.push_back(&kernels_avx2);
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16"))
    found.push_back(&kernels_avx512);
#endif
  return found;
}

const Kernels* chosen() {
  const auto found = supported();
  const char* forced = std::getenv("FOURBEE_ISA");
  if (!forced || !*forced) return found.back();
  std::string names;
  for (const Kernels* one : found) {
    if (std::strcmp(one->name, forced) == 0) return one;
    names += (names.empty() ? "" : ", ") + std::string(one->name);
  }
  throw std::invalid_argument("FOURBEE_ISA = '" + std::string(forced) + "': this machine runs " + names);
}

// ---- the process's kernels and threads -------------------------------------------------------

// The kernels, the threads and memory that is used over and over: what is allocated anew each time
// costs a page fault for every 4 KB.
struct Machine {
  const Kernels* kernels = chosen();
  std::unique_ptr<Pool> pool = std::make_unique<Pool>(int(std::max(1u, std::thread::hardware_concurrency())));
  std::mutex busy;  // one operation at a time: they share the buffers
  std::vector<uint8_t> values;
  std::vector<float> scales, gate, up;
  std::vector<int32_t> sums;
};

Machine& machine() {
  static Machine one;
  return one;
}

// Ranges of [0, count) as tasks: several a thread, so that a slow one holds up little.
template <typename Work>
void share(int64_t count, int64_t least, Work work) {
  Pool& pool = *machine().pool;
  const int64_t wanted = int64_t(pool.threads()) * 4;
  const int64_t size = std::max(least, ((count + wanted - 1) / wanted + least - 1) / least * least);
  pool.run((count + size - 1) / size, [&](int64_t task) { work(task * size, std::min(count, (task + 1) * size)); });
}

// ---- matrices and products -------------------------------------------------------------------

Kind kind_named(const std::string& name) {
  if (name == "f32") return Kind::f32;
  if (name == "bf16") return Kind::bf16;
  if (name == "int8") return Kind::int8;
  if (name == "int4") return Kind::int4;
  throw std::invalid_argument("kind = '" + name + "': expected one of f32, bf16, int8, int4");
}

class PackedWeights {
 public:
  PackedWeights(const std::string& kind, int64_t rows, int64_t columns, int64_t group, bool rotated, Bytes data)
      : data_(data), matrix_{kind_named(kind), rows, columns, group, 0, rotated, data.data()} {
    const bool grouped = matrix_.kind == Kind::int8 || matrix_.kind == Kind::int4;
    require(rows > 0 && columns > 0 && rows < (1 << 30) && columns < (1 << 30), "rows and columns: expected from 1 to 2^30");
    require(grouped ? group == 32 || group == 64 || group == 128 : group == 0, "group: expected 32, 64 or 128 for int8 and int4, else 0");
    require(!grouped || columns % group == 0, "columns: expected a multiple of the group");
    require(matrix_.kind != Kind::bf16 || columns % 2 == 0, "columns: expected an even number for bf16");
    require(!rotated || columns % 128 == 0, "columns: expected a multiple of 128 where rotated");
    static constexpr int64_t bits[] = {32, 16, 8, 4};
    matrix_.block_bytes = columns * kBlockRows * bits[int(matrix_.kind)] / 8 + (grouped ? columns / group * kBlockRows * 2 : 0);
    require_equal("blocks", int64_t(data.shape(0)), matrix_.blocks());
    require_equal("bytes of a block", int64_t(data.shape(1)), matrix_.block_bytes);
  }
  const Matrix& matrix() const { return matrix_; }

 private:
  Bytes data_;  // keeps the array alive
  Matrix matrix_;
};

// Packs dense rows into `data`, a block a task: [rows, columns] from a multiple of 16 rows on.
void pack(const std::string& kind, int64_t group, bool rotated, InRows rows, nb::ndarray<uint8_t, nb::numpy, nb::shape<-1, -1>, nb::c_contig, nb::device::cpu> data) {
  const int64_t count = int64_t(rows.shape(0)), columns = int64_t(rows.shape(1));
  // Its checks are those of a matrix that is packed already.
  const PackedWeights packed(kind, count, columns, group, rotated, Bytes(data));
  nb::gil_scoped_release release;
  std::lock_guard lock(machine().busy);
  const Matrix& matrix = packed.matrix();
  machine().pool->run(matrix.blocks(), [&](int64_t block) {
    std::vector<float> sixteen(size_t(kBlockRows * columns), 0.0f);
    const int64_t first = block * kBlockRows, end = std::min(count, first + kBlockRows);
    std::copy(rows.data() + first * columns, rows.data() + end * columns, sixteen.data());
    machine().kernels->pack_block(matrix, sixteen.data(), data.data() + block * matrix.block_bytes);
  });
}

bool alike(const Matrix& a, const Matrix& b) {
  const auto inputs = [](Kind kind) { return kind == Kind::int4 ? Kind::int8 : kind; };
  return inputs(a.kind) == inputs(b.kind) && a.columns == b.columns && a.group == b.group && a.rotated == b.rotated;
}

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

void multiply(const Matrix& matrix, const Inputs& inputs, float* out, bool add) {
  const Product product{&matrix, &inputs, out, add};
  share(matrix.blocks(), 4, [&](int64_t begin, int64_t end) { machine().kernels->multiply(product, begin, end); });
}

void check_product(const PackedWeights& weights, const InRows& x, const Rows& out) {
  require_equal("columns of x", int64_t(x.shape(1)), weights.matrix().columns);
  require_equal("rows of out", int64_t(out.shape(0)), int64_t(x.shape(0)));
  require_equal("columns of out", int64_t(out.shape(1)), weights.matrix().rows);
}

void linear(const PackedWeights& weights, InRows x, Rows out, bool add) {
  check_product(weights, x, out);
  if (x.shape(0) == 0) return;
  nb::gil_scoped_release release;
  std::lock_guard lock(machine().busy);
  const Inputs inputs = prepared({x.data()}, int64_t(x.shape(0)), weights.matrix());
  multiply(weights.matrix(), inputs, out.data(), add);
}

void norm_linear(InRows x, InVector norm, float eps, const std::vector<const PackedWeights*>& weights, const std::vector<Rows>& outs) {
  require_equal("outs", int64_t(outs.size()), int64_t(weights.size()));
  require_equal("norm", int64_t(norm.shape(0)), int64_t(x.shape(1)));
  for (size_t i = 0; i < weights.size(); i++) check_product(*weights[i], x, outs[i]);
  if (x.shape(0) == 0) return;
  nb::gil_scoped_release release;
  std::lock_guard lock(machine().busy);
  const Source source{x.data(), nullptr, norm.data(), eps};
  Inputs inputs{};
  for (size_t i = 0; i < weights.size(); i++) {
    const Matrix& matrix = weights[i]->matrix();
    if (i == 0 || !alike(matrix, weights[i - 1]->matrix())) inputs = prepared(source, int64_t(x.shape(0)), matrix);
    multiply(matrix, inputs, outs[i].data(), false);
  }
}

void gated_mlp(Rows residual, InVector norm, float eps, const PackedWeights& gate, const PackedWeights& up, const PackedWeights& down) {
  const int64_t rows = int64_t(residual.shape(0)), columns = int64_t(residual.shape(1)), inner = gate.matrix().rows;
  require_equal("norm", int64_t(norm.shape(0)), columns);
  require_equal("columns of gate", gate.matrix().columns, columns);
  require_equal("columns of up", up.matrix().columns, columns);
  require_equal("rows of up", up.matrix().rows, inner);
  require_equal("columns of down", down.matrix().columns, inner);
  require_equal("rows of down", down.matrix().rows, columns);
  if (rows == 0) return;
  nb::gil_scoped_release release;
  Machine& m = machine();
  std::lock_guard lock(m.busy);
  m.gate.resize(std::max(m.gate.size(), size_t(rows * inner)));
  m.up.resize(std::max(m.up.size(), size_t(rows * inner)));
  const Source source{residual.data(), nullptr, norm.data(), eps};
  Inputs inputs = prepared(source, rows, gate.matrix());
  multiply(gate.matrix(), inputs, m.gate.data(), false);
  if (!alike(gate.matrix(), up.matrix())) inputs = prepared(source, rows, up.matrix());
  multiply(up.matrix(), inputs, m.up.data(), false);
  inputs = prepared({m.gate.data(), m.up.data()}, rows, down.matrix());
  multiply(down.matrix(), inputs, residual.data(), true);
}

void norm_rows(InRows x, InVector norm, float eps, Rows out) {
  require_equal("norm", int64_t(norm.shape(0)), int64_t(x.shape(1)));
  require(out.shape(0) == x.shape(0) && out.shape(1) == x.shape(1), "out: expected the shape of x");
  nb::gil_scoped_release release;
  const Source source{x.data(), nullptr, norm.data(), eps};
  machine().kernels->norm(source, out.data(), int64_t(x.shape(1)), 0, int64_t(x.shape(0)));
}

void unpack_rows(const PackedWeights& weights, Integers rows, Rows out) {
  require_equal("rows of out", int64_t(out.shape(0)), int64_t(rows.shape(0)));
  require_equal("columns of out", int64_t(out.shape(1)), weights.matrix().columns);
  for (size_t i = 0; i < rows.shape(0); i++)
    require(rows(i) >= 0 && rows(i) < weights.matrix().rows, "row " + std::to_string(rows(i)) + ": the matrix has " + std::to_string(weights.matrix().rows));
  nb::gil_scoped_release release;
  for (size_t i = 0; i < rows.shape(0); i++)
    machine().kernels->unpack_row(weights.matrix(), rows(i), out.data() + i * out.shape(1));
}

// ---- attention -------------------------------------------------------------------------------

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

NB_MODULE(_native, module) {
  module.def("isa", [] { return machine().kernels->name; }, "The instruction set in use: portable, avx2 or avx512.");
  module.def("isas", [] {
    std::vector<std::string> names;
    for (const Kernels* one : supported()) names.push_back(one->name);
    return names;
  }, "The instruction sets that this machine runs.");
  module.def("threads", [] { return machine().pool->threads(); });
  module.def("set_threads", [](int threads) {
    require(threads >= 1 && threads <= 1024, "threads = " + std::to_string(threads) + ": expected from 1 to 1024");
    Machine& m = machine();
    nb::gil_scoped_release release;
    std::lock_guard lock(m.busy);
    m.pool.reset();
    m.pool = std::make_unique<Pool>(threads);
  }, nb::arg("threads"));

  nb::class_<PackedWeights>(module, "PackedWeights")
      .def(nb::init<const std::string&, int64_t, int64_t, int64_t, bool, Bytes>(), nb::arg("kind"), nb::arg("rows"),
           nb::arg("columns"), nb::arg("group"), nb::arg("rotated"), nb::arg("data"));
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

  module.def("pack", &pack, nb::arg("kind"), nb::arg("group"), nb::arg("rotated"), nb::arg("rows"), nb::arg("data"));
  module.def("linear", &linear, nb::arg("weights"), nb::arg("x"), nb::arg("out"), nb::arg("add"));
  module.def("norm_linear", &norm_linear, nb::arg("x"), nb::arg("norm"), nb::arg("eps"), nb::arg("weights"), nb::arg("outs"));
  module.def("gated_mlp", &gated_mlp, nb::arg("residual"), nb::arg("norm"), nb::arg("eps"), nb::arg("gate"), nb::arg("up"), nb::arg("down"));
  module.def("norm", &norm_rows, nb::arg("x"), nb::arg("norm"), nb::arg("eps"), nb::arg("out"));
  module.def("unpack_rows", &unpack_rows, nb::arg("weights"), nb::arg("rows"), nb::arg("out"));
  module.def("rotate_heads", &rotate_heads, nb::arg("x"), nb::arg("norm"), nb::arg("eps"), nb::arg("cos"), nb::arg("sin"), nb::arg("out"));
  module.def("attend", &attend, nb::arg("pool"), nb::arg("layer"), nb::arg("query"), nb::arg("key"), nb::arg("value"),
             nb::arg("counts"), nb::arg("starts"), nb::arg("page_offsets"), nb::arg("pages"), nb::arg("out"));
}
