// What training runs of the kernels, as Python calls it: float32 alone; products are torch's.
#include "machine.h"

namespace fourbee {
namespace {

// The blocks' sums `[blocks, columns]`, in order.
void add_blocks(const std::vector<float>& sums, int64_t columns, float* total) {
  std::fill_n(total, columns, 0.0f);
  for (size_t at = 0; at < sums.size(); at += size_t(columns))
    for (int64_t d = 0; d < columns; d++) total[d] += sums[at + size_t(d)];
}

// Each block of rows, a task a thread; what they sum up becomes `total`.
template <typename Work>
void blocks_of_rows(int64_t rows, int64_t columns, float* total, Work work) {
  const int64_t blocks = (rows + kGradientRows - 1) / kGradientRows;
  std::vector<float> sums(size_t(blocks * columns));
  nb::gil_scoped_release release;
  std::lock_guard lock(machine().busy);
  share(blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; block++) work(block, sums.data());
  });
  add_blocks(sums, columns, total);
}

void norm_gradient(InRows x, InVector norm, float eps, InRows grad, Rows grad_x, Vector grad_norm) {
  const int64_t rows = int64_t(x.shape(0)), columns = int64_t(x.shape(1));
  require_equal("norm", int64_t(norm.shape(0)), columns);
  require_equal("grad_norm", int64_t(grad_norm.shape(0)), columns);
  for (const size_t found : {grad.shape(0), grad_x.shape(0)}) require_equal("rows of gradients", int64_t(found), rows);
  for (const size_t found : {grad.shape(1), grad_x.shape(1)}) require_equal("columns of gradients", int64_t(found), columns);
  NormGradient gradient{x.data(), norm.data(), grad.data(), eps, rows, columns, grad_x.data(), nullptr};
  blocks_of_rows(rows, columns, grad_norm.data(), [=](int64_t block, float* sums) {
    NormGradient own = gradient;
    own.grad_norm = sums;
    machine().kernels->norm_gradient(own, block);
  });
}

void head_gradient(InHeads x, InVector norm, float eps, InRows cos, InRows sin, InHeads grad, Heads grad_x, Vector grad_norm) {
  const int64_t rows = int64_t(x.shape(0)), heads = int64_t(x.shape(1)), head_dim = int64_t(x.shape(2));
  require(head_dim % 2 == 0, "head_dim: expected an even number");
  require_equal("norm", int64_t(norm.shape(0)), head_dim);
  require_equal("grad_norm", int64_t(grad_norm.shape(0)), head_dim);
  for (const InRows* table : {&cos, &sin}) {
    require_equal("rows of the rotation", int64_t(table->shape(0)), rows);
    require_equal("columns of the rotation", int64_t(table->shape(1)), head_dim / 2);
  }
  for (size_t axis = 0; axis < 3; axis++) {
    require_equal("a side of grad", int64_t(grad.shape(axis)), int64_t(x.shape(axis)));
    require_equal("a side of grad_x", int64_t(grad_x.shape(axis)), int64_t(x.shape(axis)));
  }
  const HeadRotation rotation{x.data(), norm.data(), cos.data(), sin.data(), eps, heads, head_dim, nullptr};
  const NormGradient gradient{x.data(), norm.data(), grad.data(), eps, rows, head_dim, grad_x.data(), nullptr};
  blocks_of_rows(rows, head_dim, grad_norm.data(), [=](int64_t block, float* sums) {
    NormGradient own = gradient;
    own.grad_norm = sums;
    machine().kernels->head_gradient(rotation, own, block);
  });
}

// Numbers that one task takes of a SwiGLU: whole vectors.
constexpr int64_t kNumbers = 1 << 14;

void swiglu(InVector gate, InVector up, Vector out) {
  const int64_t count = int64_t(gate.shape(0));
  require_equal("numbers of up", int64_t(up.shape(0)), count);
  require_equal("numbers of out", int64_t(out.shape(0)), count);
  nb::gil_scoped_release release;
  std::lock_guard lock(machine().busy);
  share(count, kNumbers, [&](int64_t begin, int64_t end) {
    machine().kernels->swiglu(gate.data() + begin, up.data() + begin, end - begin, out.data() + begin);
  });
}

void swiglu_gradient(Vector gate, Vector up, Vector inner) {
  const int64_t count = int64_t(gate.shape(0));
  require_equal("numbers of up", int64_t(up.shape(0)), count);
  require_equal("numbers of inner", int64_t(inner.shape(0)), count);
  nb::gil_scoped_release release;
  std::lock_guard lock(machine().busy);
  share(count, kNumbers, [&](int64_t begin, int64_t end) {
    machine().kernels->swiglu_gradient(gate.data() + begin, up.data() + begin, inner.data() + begin, end - begin);
  });
}

}  // namespace

void bind_gradients(nb::module_& module) {
  module.def("norm_gradient", &norm_gradient, nb::arg("x"), nb::arg("norm"), nb::arg("eps"), nb::arg("grad"), nb::arg("grad_x"), nb::arg("grad_norm"));
  module.def("head_gradient", &head_gradient, nb::arg("x"), nb::arg("norm"), nb::arg("eps"), nb::arg("cos"), nb::arg("sin"), nb::arg("grad"),
             nb::arg("grad_x"), nb::arg("grad_norm"));
  module.def("swiglu", &swiglu, nb::arg("gate"), nb::arg("up"), nb::arg("out"));
  module.def("swiglu_gradient", &swiglu_gradient, nb::arg("gate"), nb::arg("up"), nb::arg("inner"));
}

}  // namespace fourbee
