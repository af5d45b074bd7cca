// Products with packed matrices, as Python calls them.
#include "machine.h"

namespace fourbee {
namespace {

// Packs dense rows into `data`, a block a task: [rows, columns] from a multiple of 16 rows on.
void pack(const std::string& kind, int64_t group, bool rotated, InRows rows, nb::ndarray<uint8_t, nb::numpy, nb::shape<-1, -1>, nb::c_contig, nb::device::cpu> data) {
  const int64_t count = int64_t(rows.shape(0)), columns = int64_t(rows.shape(1));
  require(kind != "int4a", "kind = 'int4a': packed from numbers and scales, not from dense rows");
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
  const auto inputs = [](Kind kind) { return is_int4(kind) ? Kind::int8 : kind; };
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

}  // namespace

void bind_products(nb::module_& module) {
  nb::class_<PackedWeights>(module, "PackedWeights")
      .def(nb::init<const std::string&, int64_t, int64_t, int64_t, bool, Bytes>(), nb::arg("kind"), nb::arg("rows"),
           nb::arg("columns"), nb::arg("group"), nb::arg("rotated"), nb::arg("data"));
  module.def("pack", &pack, nb::arg("kind"), nb::arg("group"), nb::arg("rotated"), nb::arg("rows"), nb::arg("data"));
  module.def("linear", &linear, nb::arg("weights"), nb::arg("x"), nb::arg("out"), nb::arg("add"));
  module.def("norm_linear", &norm_linear, nb::arg("x"), nb::arg("norm"), nb::arg("eps"), nb::arg("weights"), nb::arg("outs"));
  module.def("gated_mlp", &gated_mlp, nb::arg("residual"), nb::arg("norm"), nb::arg("eps"), nb::arg("gate"), nb::arg("up"), nb::arg("down"));
  module.def("norm", &norm_rows, nb::arg("x"), nb::arg("norm"), nb::arg("eps"), nb::arg("out"));
  module.def("unpack_rows", &unpack_rows, nb::arg("weights"), nb::arg("rows"), nb::arg("out"));
}

}  // namespace fourbee
