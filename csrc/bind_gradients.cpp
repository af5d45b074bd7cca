// What training runs of the kernels, as Python calls it: float32 alone; products are torch's.
#include <cmath>

#include "machine.h"

namespace fourbee {
namespace {

// The blocks' sums `[blocks, columns]`, in order.
void add_blocks(const std::vector<float>& sums, int64_t columns, float* total) {
  std::fill_n(total, columns, 0.0f);
  for (size_t at = 0; at < sums.size(); at += size_t(columns))
    for (int64_t d = 0; d < columns; d++) total[d] += sums[at + size_t(d)];
}

// Works on each block of the gradient's rows with a place for the block's sums, which become `grad_norm`.
template <typename Work>
void blocks_of_rows(NormGradient gradient, float* grad_norm, Work work) {
  const int64_t blocks = (gradient.rows + kGradientRows - 1) / kGradientRows;
  std::vector<float> sums(size_t(blocks * gradient.columns));
  gradient.grad_norm = sums.data();
  nb::gil_scoped_release release;
  std::lock_guard lock(machine().busy);
  share(blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; block++) work(gradient, block);
  });
  add_blocks(sums, gradient.columns, grad_norm);
}

template <typename Array>
void require_same(const char* what, const InHeads& like, const Array& found) {
  for (size_t axis = 0; axis < 3; axis++)
    require(found.shape(axis) == like.shape(axis), std::string(what) + ": expected the shape of what it belongs to");
}

void norm_gradient(InRows x, InVector norm, float eps, InRows grad, Rows grad_x, Vector grad_norm) {
  const int64_t rows = int64_t(x.shape(0)), columns = int64_t(x.shape(1));
  require_equal("norm", int64_t(norm.shape(0)), columns);
  require_equal("grad_norm", int64_t(grad_norm.shape(0)), columns);
  for (const size_t found : {grad.shape(0), grad_x.shape(0)}) require_equal("rows of gradients", int64_t(found), rows);
  for (const size_t found : {grad.shape(1), grad_x.shape(1)}) require_equal("columns of gradients", int64_t(found), columns);
  const NormGradient gradient{x.data(), norm.data(), grad.data(), eps, rows, columns, grad_x.data(), nullptr};
  blocks_of_rows(gradient, grad_norm.data(), machine().kernels->norm_gradient);
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
  require_same("grad", x, grad);
  require_same("grad_x", x, grad_x);
  const HeadRotation rotation{x.data(), norm.data(), cos.data(), sin.data(), eps, heads, head_dim, nullptr};
  const NormGradient gradient{x.data(), norm.data(), grad.data(), eps, rows, head_dim, grad_x.data(), nullptr};
  blocks_of_rows(gradient, grad_norm.data(), [&](const NormGradient& own, int64_t block) {
    machine().kernels->head_gradient(rotation, own, block);
  });
}

// Numbers that one task takes of a SwiGLU: whole vectors.
constexpr int64_t kNumbers = 1 << 14;

template <typename Work>
void share_numbers(int64_t count, Work work) {
  nb::gil_scoped_release release;
  std::lock_guard lock(machine().busy);
  share(count, kNumbers, work);
}

void swiglu(InVector gate, InVector up, Vector out) {
  const int64_t count = int64_t(gate.shape(0));
  require_equal("numbers of up", int64_t(up.shape(0)), count);
  require_equal("numbers of out", int64_t(out.shape(0)), count);
  share_numbers(count, [&](int64_t begin, int64_t end) {
    machine().kernels->swiglu(gate.data() + begin, up.data() + begin, end - begin, out.data() + begin);
  });
}

void swiglu_gradient(Vector gate, Vector up, Vector inner) {
  const int64_t count = int64_t(gate.shape(0));
  require_equal("numbers of up", int64_t(up.shape(0)), count);
  require_equal("numbers of inner", int64_t(inner.shape(0)), count);
  share_numbers(count, [&](int64_t begin, int64_t end) {
    machine().kernels->swiglu_gradient(gate.data() + begin, up.data() + begin, inner.data() + begin, end - begin);
  });
}

// Shapes of a pack; documents that follow each other without a gap.
DocumentRows documents_of(InHeads query, InHeads key, InHeads value, Integers starts) {
  const int64_t rows = int64_t(query.shape(0)), query_heads = int64_t(query.shape(1)), head_dim = int64_t(query.shape(2));
  const int64_t heads = int64_t(key.shape(1)), documents = int64_t(starts.shape(0)) - 1;
  require(head_dim % 16 == 0, "head_dim: expected a multiple of 16");
  require(heads > 0 && query_heads % heads == 0, "heads of query: expected a multiple of those of key");
  for (const InHeads* one : {&key, &value}) {
    require_equal("rows of keys and values", int64_t(one->shape(0)), rows);
    require_equal("heads of keys and values", int64_t(one->shape(1)), heads);
    require_equal("dimensions of keys and values", int64_t(one->shape(2)), head_dim);
  }
  require(documents >= 0, "starts: expected one more than documents");
  require_equal("the first start", starts(0), 0);
  require_equal("the last start", starts(size_t(documents)), rows);
  for (int64_t i = 0; i < documents; i++) {
    const int64_t length = starts(size_t(i + 1)) - starts(size_t(i));
    require(length > 0 && length <= kLongestDocument, "length of a document = " + std::to_string(length) + ": expected from 1 to " + std::to_string(kLongestDocument));
  }
  return {query.data(), key.data(), value.data(), query_heads, heads, head_dim, starts.data(), 1.0f / std::sqrt(float(head_dim)), nullptr};
}

template <typename Work>
void each_document(const DocumentRows& rows, int64_t documents, Work work) {
  nb::gil_scoped_release release;
  std::lock_guard lock(machine().busy);
  machine().pool->run(documents * rows.heads, [&](int64_t task) { work(task / rows.heads, task % rows.heads); });
}

void attend_documents(InHeads query, InHeads key, InHeads value, Integers starts, Heads out) {
  DocumentRows rows = documents_of(query, key, value, starts);
  require_same("out", query, out);
  rows.out = out.data();
  each_document(rows, int64_t(starts.shape(0)) - 1, [&](int64_t document, int64_t head) { machine().kernels->attend_document(rows, document, head); });
}

void document_gradients(InHeads query, InHeads key, InHeads value, Integers starts, InHeads grad, Heads grad_query, Heads grad_key, Heads grad_value) {
  const DocumentRows rows = documents_of(query, key, value, starts);
  require_same("grad", query, grad);
  require_same("grad_query", query, grad_query);
  require_same("grad_key", key, grad_key);
  require_same("grad_value", key, grad_value);
  const DocumentGradients gradients{grad.data(), grad_query.data(), grad_key.data(), grad_value.data()};
  each_document(rows, int64_t(starts.shape(0)) - 1,
                [&](int64_t document, int64_t head) { machine().kernels->document_gradient(rows, gradients, document, head); });
}

}  // namespace

void bind_gradients(nb::module_& module) {
  module.def("norm_gradient", &norm_gradient, nb::arg("x"), nb::arg("norm"), nb::arg("eps"), nb::arg("grad"), nb::arg("grad_x"), nb::arg("grad_norm"));
  module.def("head_gradient", &head_gradient, nb::arg("x"), nb::arg("norm"), nb::arg("eps"), nb::arg("cos"), nb::arg("sin"), nb::arg("grad"),
             nb::arg("grad_x"), nb::arg("grad_norm"));
  module.def("swiglu", &swiglu, nb::arg("gate"), nb::arg("up"), nb::arg("out"));
  module.def("swiglu_gradient", &swiglu_gradient, nb::arg("gate"), nb::arg("up"), nb::arg("inner"));
  module.attr("LONGEST_DOCUMENT") = kLongestDocument;
  module.def("attend_documents", &attend_documents, nb::arg("query"), nb::arg("key"), nb::arg("value"), nb::arg("starts"), nb::arg("out"));
  module.def("document_gradients", &document_gradients, nb::arg("query"), nb::arg("key"), nb::arg("value"), nb::arg("starts"), nb::arg("grad"),
             nb::arg("grad_query"), nb::arg("grad_key"), nb::arg("grad_value"));
}

}  // namespace fourbee
