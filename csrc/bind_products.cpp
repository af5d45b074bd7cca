// Products with packed matrices, as Python calls them.
#include "machine.h"

namespace fourbee {
namespace {

// Packs dense rows into `data`, a block a task: [rows, columns] from a multiple of 16 rows on. The scales of int4 are
// searched, or plain ones.
void pack(const std::string& kind, int64_t group, bool rotated, bool searched, InRows rows, nb::ndarray<uint8_t, nb::numpy, nb::shape<-1, -1>, nb::c_contig, nb::device::cpu> data) {
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
    machine().kernels->pack_block(matrix, searched, sixteen.data(), data.data() + block * matrix.block_bytes);
  });
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
  linear_rows(weights.matrix(), x.data(), int64_t(x.shape(0)), out.data(), add);
}

void norm_linear(InRows x, InVector norm, float eps, const std::vector<const PackedWeights*>& weights, const std::vector<Rows>& outs) {
  require_equal("outs", int64_t(outs.size()), int64_t(weights.size()));
  require_equal("norm", int64_t(norm.shape(0)), int64_t(x.shape(1)));
  std::vector<const Matrix*> matrices;
  std::vector<float*> targets;
  for (size_t i = 0; i < weights.size(); i++) {
    check_product(*weights[i], x, outs[i]);
    matrices.push_back(&weights[i]->matrix());
    targets.push_back(outs[i].data());
  }
  if (x.shape(0) == 0) return;
  nb::gil_scoped_release release;
  std::lock_guard lock(machine().busy);
  norm_linear_rows({x.data(), nullptr, norm.data(), eps}, int64_t(x.shape(0)), matrices.data(), targets.data(), matrices.size());
}

void gated_mlp(Rows residual, InVector norm, float eps, const PackedWeights& gate, const PackedWeights& up, const PackedWeights& down) {
  require_equal("norm", int64_t(norm.shape(0)), int64_t(residual.shape(1)));
  check_mlp(gate.matrix(), up.matrix(), down.matrix(), int64_t(residual.shape(1)));
  if (residual.shape(0) == 0) return;
  nb::gil_scoped_release release;
  std::lock_guard lock(machine().busy);
  gated_mlp_rows(residual.data(), int64_t(residual.shape(0)), norm.data(), eps, gate.matrix(), up.matrix(), down.matrix());
}

void norm_of(InRows x, InVector norm, float eps, Rows out) {
  require_equal("norm", int64_t(norm.shape(0)), int64_t(x.shape(1)));
  require(out.shape(0) == x.shape(0) && out.shape(1) == x.shape(1), "out: expected the shape of x");
  nb::gil_scoped_release release;
  std::lock_guard lock(machine().busy);
  norm_rows({x.data(), nullptr, norm.data(), eps}, int64_t(x.shape(0)), int64_t(x.shape(1)), out.data());
}

void unpack_rows(const PackedWeights& weights, Integers rows, Rows out) {
  require_equal("rows of out", int64_t(out.shape(0)), int64_t(rows.shape(0)));
  require_equal("columns of out", int64_t(out.shape(1)), weights.matrix().columns);
  check_ids(rows, weights.matrix());
  nb::gil_scoped_release release;
  std::lock_guard lock(machine().busy);
  embed_rows(weights.matrix(), rows.data(), int64_t(rows.shape(0)), out.data());
}

}  // namespace

void bind_products(nb::module_& module) {
  nb::class_<PackedWeights>(module, "PackedWeights")
      .def(nb::init<const std::string&, int64_t, int64_t, int64_t, bool, Bytes>(), nb::arg("kind"), nb::arg("rows"),
           nb::arg("columns"), nb::arg("group"), nb::arg("rotated"), nb::arg("data"));
  module.def("pack", &pack, nb::arg("kind"), nb::arg("group"), nb::arg("rotated"), nb::arg("searched"), nb::arg("rows"), nb::arg("data"));
  module.def("linear", &linear, nb::arg("weights"), nb::arg("x"), nb::arg("out"), nb::arg("add"));
  module.def("norm_linear", &norm_linear, nb::arg("x"), nb::arg("norm"), nb::arg("eps"), nb::arg("weights"), nb::arg("outs"));
  module.def("gated_mlp", &gated_mlp, nb::arg("residual"), nb::arg("norm"), nb::arg("eps"), nb::arg("gate"), nb::arg("up"), nb::arg("down"));
  module.def("norm", &norm_of, nb::arg("x"), nb::arg("norm"), nb::arg("eps"), nb::arg("out"));
  module.def("unpack_rows", &unpack_rows, nb::arg("weights"), nb::arg("rows"), nb::arg("out"));
}

}  // namespace fourbee
