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

// An adapter's two matrices and its rows, over memory that Python owns.
class Adapter {
 public:
  Adapter(Integers rows, const PackedWeights& down, const PackedWeights& up) : rows_(rows), down_(&down.matrix()), up_(&up.matrix()) {
    require_equal("columns of up", up_->columns, down_->rows);
    for (size_t i = 0; i < rows.shape(0); i++)
      require(rows(i) >= 0 && (i == 0 || rows(i) > rows(i - 1)), "rows: expected ascending numbers from 0");
  }
  LowRank over(int64_t rows, int64_t columns, int64_t width) const {
    const int64_t count = int64_t(rows_.shape(0));
    require(count == 0 || rows_(size_t(count - 1)) < rows, "rows: there are " + std::to_string(rows));
    require_equal("columns of down", down_->columns, columns);
    require_equal("rows of up", up_->rows, width);
    return {down_, up_, rows_.data(), count};
  }

 private:
  Integers rows_;
  const Matrix *down_, *up_;
};

using Adapters = std::vector<const Adapter*>;

// `deltas` has one entry for each product, or none.
std::vector<Delta> deltas_of(const std::vector<Adapters>& deltas, const std::vector<const Matrix*>& matrices, int64_t rows) {
  std::vector<Delta> made(matrices.size());
  if (deltas.empty()) return made;
  require_equal("deltas", int64_t(deltas.size()), int64_t(matrices.size()));
  for (size_t i = 0; i < deltas.size(); i++)
    for (const Adapter* one : deltas[i]) made[i].push_back(one->over(rows, matrices[i]->columns, matrices[i]->rows));
  return made;
}

void linear(const PackedWeights& weights, InRows x, Rows out, bool add, const Adapters& delta) {
  check_product(weights, x, out);
  const std::vector<Delta> deltas = deltas_of({delta}, {&weights.matrix()}, int64_t(x.shape(0)));
  if (x.shape(0) == 0) return;
  nb::gil_scoped_release release;
  std::lock_guard lock(machine().busy);
  linear_rows(weights.matrix(), x.data(), int64_t(x.shape(0)), out.data(), add);
  add_delta({x.data()}, deltas[0], out.data());
}

void norm_linear(InRows x, InVector norm, float eps, const std::vector<const PackedWeights*>& weights, const std::vector<Rows>& outs,
                 const std::vector<Adapters>& adapters) {
  require_equal("outs", int64_t(outs.size()), int64_t(weights.size()));
  require_equal("norm", int64_t(norm.shape(0)), int64_t(x.shape(1)));
  std::vector<const Matrix*> matrices;
  std::vector<float*> targets;
  for (size_t i = 0; i < weights.size(); i++) {
    check_product(*weights[i], x, outs[i]);
    matrices.push_back(&weights[i]->matrix());
    targets.push_back(outs[i].data());
  }
  const std::vector<Delta> deltas = deltas_of(adapters, matrices, int64_t(x.shape(0)));
  if (x.shape(0) == 0) return;
  nb::gil_scoped_release release;
  std::lock_guard lock(machine().busy);
  const Source source{x.data(), nullptr, norm.data(), eps};
  norm_linear_rows(source, int64_t(x.shape(0)), matrices.data(), targets.data(), matrices.size());
  for (size_t i = 0; i < targets.size(); i++) add_delta(source, deltas[i], targets[i]);
}

void gated_mlp(Rows residual, InVector norm, float eps, const PackedWeights& gate, const PackedWeights& up, const PackedWeights& down,
               const std::vector<Adapters>& adapters) {
  require_equal("norm", int64_t(norm.shape(0)), int64_t(residual.shape(1)));
  check_mlp(gate.matrix(), up.matrix(), down.matrix(), int64_t(residual.shape(1)));
  const std::vector<Delta> deltas = deltas_of(adapters, {&gate.matrix(), &up.matrix(), &down.matrix()}, int64_t(residual.shape(0)));
  if (residual.shape(0) == 0) return;
  nb::gil_scoped_release release;
  std::lock_guard lock(machine().busy);
  gated_mlp_rows(residual.data(), int64_t(residual.shape(0)), norm.data(), eps, gate.matrix(), up.matrix(), down.matrix(), deltas.data());
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
  nb::class_<Adapter>(module, "Adapter")
      .def(nb::init<Integers, const PackedWeights&, const PackedWeights&>(), nb::keep_alive<1, 3>(), nb::keep_alive<1, 4>(),
           nb::arg("rows"), nb::arg("down"), nb::arg("up"));
  module.def("pack", &pack, nb::arg("kind"), nb::arg("group"), nb::arg("rotated"), nb::arg("searched"), nb::arg("rows"), nb::arg("data"));
  module.def("linear", &linear, nb::arg("weights"), nb::arg("x"), nb::arg("out"), nb::arg("add"), nb::arg("delta") = Adapters());
  module.def("norm_linear", &norm_linear, nb::arg("x"), nb::arg("norm"), nb::arg("eps"), nb::arg("weights"), nb::arg("outs"),
             nb::arg("deltas") = std::vector<Adapters>());
  module.def("gated_mlp", &gated_mlp, nb::arg("residual"), nb::arg("norm"), nb::arg("eps"), nb::arg("gate"), nb::arg("up"), nb::arg("down"),
             nb::arg("deltas") = std::vector<Adapters>());
  module.def("norm", &norm_of, nb::arg("x"), nb::arg("norm"), nb::arg("eps"), nb::arg("out"));
  module.def("unpack_rows", &unpack_rows, nb::arg("weights"), nb::arg("rows"), nb::arg("out"));
}

}  // namespace fourbee
