// A recorded plan: the operations of one forward pass as a list, replayed in one call that lets go of the
// interpreter's lock once. What the network is, is not known here: fourbee/kernels/native_plan.py records it.
#include <functional>

#include "machine.h"

namespace fourbee {
namespace {

class Plan {
 public:
  // A buffer of floats: `width` a row; a row for each token, or for each of those that go on to the head.
  int64_t buffer(int64_t width, bool kept) {
    require(width > 0 && width < (1 << 30), "width: expected from 1 to 2^30");
    buffers_.push_back({width, kept, {}});
    return int64_t(buffers_.size()) - 1;
  }

  void embed(const PackedWeights& table, int64_t out) {
    check(out, table.matrix().columns, false);
    table_ = &table.matrix();
    steps_.push_back([this, out](const Run& run) { embed_rows(*table_, run.ids, run.rows, at(out)); });
  }

  void norm(int64_t x, InVector weight, float eps, int64_t out) {
    const int64_t width = int64_t(weight.shape(0));
    check(x, width, kept(x)), check(out, width, kept(x));
    const float* norm = weight.data();
    steps_.push_back([=](const Run& run) { norm_rows({at(x), nullptr, norm, eps}, rows(run, x), width, at(out)); });
  }

  void norm_linear(int64_t x, InVector weight, float eps, const std::vector<const PackedWeights*>& weights, const std::vector<int64_t>& outs) {
    require_equal("outs", int64_t(outs.size()), int64_t(weights.size()));
    std::vector<const Matrix*> matrices;
    check(x, int64_t(weight.shape(0)), kept(x));
    for (size_t i = 0; i < outs.size(); i++) {
      matrices.push_back(&weights[i]->matrix());
      check(x, matrices[i]->columns, kept(x)), check(outs[i], matrices[i]->rows, kept(x));
    }
    const float* norm = weight.data();
    steps_.push_back([=](const Run& run) {
      std::vector<float*> targets;
      for (const int64_t out : outs) targets.push_back(at(out));
      norm_linear_rows({at(x), nullptr, norm, eps}, rows(run, x), matrices.data(), targets.data(), matrices.size());
    });
  }

  void rotate(int64_t x, InVector weight, float eps, int64_t out) {
    const int64_t head_dim = int64_t(weight.shape(0));
    check(out, width(x), false), check(x, width(out), false);
    require(head_dim > 0 && head_dim % 2 == 0 && width(x) % head_dim == 0, "norm: expected an even part of the row");
    require(half_dim_ == 0 || half_dim_ == head_dim / 2, "norm: expected one head_dim for the whole plan");
    half_dim_ = head_dim / 2;
    const float* norm = weight.data();
    steps_.push_back([=](const Run& run) {
      rotate_rows({at(x), norm, run.cos, run.sin, eps, width(x) / head_dim, head_dim, at(out)}, run.rows);
    });
  }

  void attend(int64_t layer, int64_t query, int64_t key, int64_t value, int64_t out) {
    check(out, width(query), false), check(query, width(out), false);
    check(key, width(value), false), check(value, width(key), false);
    require(layer >= 0, "layer: expected from 0");
    require(layers_ == 0 || (query_width_ == width(query) && key_width_ == width(key)), "query and key: expected one width for the whole plan");
    layers_ = std::max(layers_, layer + 1), query_width_ = width(query), key_width_ = width(key);
    steps_.push_back([=](const Run& run) {
      const PageLayout& layout = run.pool->layout();
      attend_rows(layout, *run.sequences, layer, width(query) / layout.head_dim, at(query), at(key), at(value), at(out));
    });
  }

  void select(int64_t x, int64_t out) {
    check(x, width(out), false), check(out, width(x), true);
    const int64_t columns = width(x);
    steps_.push_back([=](const Run& run) {
      for (int64_t i = 0; i < run.kept_rows; i++) std::copy_n(at(x) + run.kept[i] * columns, columns, at(out) + i * columns);
    });
  }

  void linear_residual(const PackedWeights& weights, int64_t x, int64_t residual, int64_t out) {
    const Matrix* matrix = &weights.matrix();
    check(x, matrix->columns, kept(x)), check(residual, matrix->rows, kept(x)), check(out, matrix->rows, kept(x));
    steps_.push_back([=](const Run& run) {
      std::copy_n(at(residual), rows(run, x) * matrix->rows, at(out));
      linear_rows(*matrix, at(x), rows(run, x), at(out), true);
    });
  }

  void gated_mlp(int64_t x, InVector weight, float eps, const PackedWeights& gate, const PackedWeights& up, const PackedWeights& down) {
    const int64_t columns = int64_t(weight.shape(0));
    check(x, columns, kept(x));
    const Matrix *g = &gate.matrix(), *u = &up.matrix(), *d = &down.matrix();
    check_mlp(*g, *u, *d, columns);
    const float* norm = weight.data();
    steps_.push_back([=](const Run& run) { gated_mlp_rows(at(x), rows(run, x), norm, eps, *g, *u, *d); });
  }

  // Replays the plan; false when it was aborted on the way: what it was to write means nothing then.
  bool run(const KvPool& pool, Integers ids, Integers kept_rows, InRows cos, InRows sin, Integers counts, Integers starts,
           Integers page_offsets, Integers pages, int64_t result, Rows out) {
    const int64_t count = int64_t(ids.shape(0));
    require(table_ && half_dim_ && layers_, "plan: expected an embedding, a rotation and attention");
    check_ids(ids, *table_);
    for (size_t i = 0; i < kept_rows.shape(0); i++) require(kept_rows(i) >= 0 && kept_rows(i) < count, "rows: out of range");
    for (const InRows* table : {&cos, &sin}) {
      require_equal("rows of the rotary table", int64_t(table->shape(0)), count);
      require_equal("columns of the rotary table", int64_t(table->shape(1)), half_dim_);
    }
    const PageLayout& layout = pool.layout();
    require_equal("layers of the pages", pool.layers(), layers_);
    require_equal("width of keys and values", layout.heads * layout.head_dim, key_width_);
    require(query_width_ % key_width_ == 0, "query heads: expected a multiple of the key-value heads");
    require(result >= 0 && result < int64_t(buffers_.size()), "result: expected a buffer");
    require_equal("columns of out", int64_t(out.shape(1)), width(result));
    require_equal("rows of out", int64_t(out.shape(0)), kept(result) ? int64_t(kept_rows.shape(0)) : count);
    const Sequences sequences = sequences_of(pool, count, counts, starts, page_offsets, pages);
    const Run run{&pool, &sequences, ids.data(), kept_rows.data(), cos.data(), sin.data(), count, int64_t(kept_rows.shape(0))};
    nb::gil_scoped_release release;
    Machine& m = machine();
    std::lock_guard lock(m.busy);
    for (Buffer& one : buffers_) one.values.resize(std::max(one.values.size(), size_t(one.width * (one.kept ? run.kept_rows : run.rows))));
    for (const auto& step : steps_) {
      if (m.abort.exchange(false)) return false;
      step(run);
      m.heartbeat++;
    }
    std::copy_n(at(result), out.size(), out.data());
    return true;
  }

 private:
  struct Buffer {
    int64_t width;
    bool kept;
    std::vector<float> values;
  };
  struct Run {
    const KvPool* pool;
    const Sequences* sequences;
    const int64_t *ids, *kept;
    const float *cos, *sin;
    int64_t rows, kept_rows;
  };

  void check(int64_t buffer, int64_t width, bool kept) const {
    require(buffer >= 0 && buffer < int64_t(buffers_.size()), "buffer " + std::to_string(buffer) + ": there are " + std::to_string(buffers_.size()));
    require_equal("width of a buffer", buffers_[size_t(buffer)].width, width);
    require(buffers_[size_t(buffer)].kept == kept, "buffer " + std::to_string(buffer) + ": of other rows");
  }
  int64_t width(int64_t buffer) const { return buffer >= 0 && buffer < int64_t(buffers_.size()) ? buffers_[size_t(buffer)].width : -1; }
  bool kept(int64_t buffer) const { return buffer >= 0 && buffer < int64_t(buffers_.size()) && buffers_[size_t(buffer)].kept; }
  int64_t rows(const Run& run, int64_t buffer) const { return kept(buffer) ? run.kept_rows : run.rows; }
  float* at(int64_t buffer) { return buffers_[size_t(buffer)].values.data(); }

  std::vector<Buffer> buffers_;
  std::vector<std::function<void(const Run&)>> steps_;
  const Matrix* table_ = nullptr;
  int64_t half_dim_ = 0, layers_ = 0, query_width_ = 0, key_width_ = 1;
};

}  // namespace

void bind_plan(nb::module_& module) {
  nb::class_<Plan>(module, "Plan", "Keeps no reference to weights: whoever records them must.")
      .def(nb::init<>())
      .def("buffer", &Plan::buffer, nb::arg("width"), nb::arg("kept"))
      .def("embed", &Plan::embed, nb::arg("table"), nb::arg("out"))
      .def("norm", &Plan::norm, nb::arg("x"), nb::arg("norm").noconvert(), nb::arg("eps"), nb::arg("out"))
      .def("norm_linear", &Plan::norm_linear, nb::arg("x"), nb::arg("norm").noconvert(), nb::arg("eps"), nb::arg("weights"), nb::arg("outs"))
      .def("rotate", &Plan::rotate, nb::arg("x"), nb::arg("norm").noconvert(), nb::arg("eps"), nb::arg("out"))
      .def("attend", &Plan::attend, nb::arg("layer"), nb::arg("query"), nb::arg("key"), nb::arg("value"), nb::arg("out"))
      .def("select", &Plan::select, nb::arg("x"), nb::arg("out"))
      .def("linear_residual", &Plan::linear_residual, nb::arg("weights"), nb::arg("x"), nb::arg("residual"), nb::arg("out"))
      .def("gated_mlp", &Plan::gated_mlp, nb::arg("x"), nb::arg("norm").noconvert(), nb::arg("eps"), nb::arg("gate"), nb::arg("up"), nb::arg("down"))
      .def("run", &Plan::run, nb::arg("pool"), nb::arg("ids"), nb::arg("kept_rows"), nb::arg("cos"), nb::arg("sin"), nb::arg("counts"),
           nb::arg("starts"), nb::arg("page_offsets"), nb::arg("pages"), nb::arg("result"), nb::arg("out"));
  module.def("abort", [] { machine().abort = true; }, "Ends the plan that is being replayed, or else the next one, after the operation at hand.");
  module.def("heartbeat", [] { return machine().heartbeat.load(); }, "Operations that plans have done so far.");
}

}  // namespace fourbee
