// The head, as Python calls it.
#include "head.h"

#include "machine.h"

namespace fourbee {
namespace {

using Seeds = nb::ndarray<const uint64_t, nb::numpy, nb::shape<-1>, nb::c_contig, nb::device::cpu>;
using Masks = nb::ndarray<const uint32_t, nb::numpy, nb::shape<-1, -1>, nb::c_contig, nb::device::cpu>;
using OutIntegers = nb::ndarray<int64_t, nb::numpy, nb::shape<-1>, nb::c_contig, nb::device::cpu>;
using OutIntegerRows = nb::ndarray<int64_t, nb::numpy, nb::shape<-1, -1>, nb::c_contig, nb::device::cpu>;
using OutFlags = nb::ndarray<bool, nb::numpy, nb::shape<-1>, nb::c_contig, nb::device::cpu>;

// `out`: token_ids [R], logprobs [R], logsumexp [R], top_ids [R, n], top_logprobs [R, n], finite [R].
struct Outs {
  OutIntegers token_ids;
  Vector logprobs, logsumexp;
  OutIntegerRows top_ids;
  Rows top_logprobs;
  OutFlags finite;

  HeadAnswer checked(int64_t rows, int64_t vocabulary) {
    for (const int64_t found : {int64_t(token_ids.shape(0)), int64_t(logprobs.shape(0)), int64_t(logsumexp.shape(0)), int64_t(top_ids.shape(0)),
                                int64_t(top_logprobs.shape(0)), int64_t(finite.shape(0))})
      require_equal("rows of an output", found, rows);
    require_equal("columns of top_logprobs", int64_t(top_logprobs.shape(1)), int64_t(top_ids.shape(1)));
    require(int64_t(top_ids.shape(1)) <= vocabulary, "columns of top_ids: more than the vocabulary");
    return {token_ids.data(), top_ids.data(), logprobs.data(), logsumexp.data(), top_logprobs.data(), finite.data()};
  }
};

int64_t checked_rows(const PackedWeights& weights, const InRows& hidden) {
  require_equal("columns of hidden", int64_t(hidden.shape(1)), weights.matrix().columns);
  require(weights.matrix().rows < (int64_t(1) << 31), "vocabulary: expected less than 2^31");
  return int64_t(hidden.shape(0));
}

void answer(const PackedWeights& weights, const InRows& hidden, const HeadQuery& query, const HeadAnswer& out) {
  if (hidden.shape(0) == 0) return;
  nb::gil_scoped_release release;
  std::lock_guard lock(machine().busy);
  head_rows(weights.matrix(), hidden.data(), int64_t(hidden.shape(0)), query, out);
}

void select_tokens(const PackedWeights& weights, InRows hidden, InVector temperature, Integers top_k, InVector top_p, InVector min_p, Seeds seed,
                   Integers position, Integers bias_rows, Integers bias_ids, InVector bias_values, Masks bitmask, OutIntegers token_ids,
                   Vector logprobs, Vector logsumexp, OutIntegerRows top_ids, Rows top_logprobs, OutFlags finite) {
  const int64_t rows = checked_rows(weights, hidden), vocabulary = weights.matrix().rows, biases = int64_t(bias_ids.shape(0));
  for (const int64_t found : {int64_t(temperature.shape(0)), int64_t(top_k.shape(0)), int64_t(top_p.shape(0)), int64_t(min_p.shape(0)),
                              int64_t(seed.shape(0)), int64_t(position.shape(0))})
    require_equal("rows of the request", found, rows);
  require_equal("bias_rows", int64_t(bias_rows.shape(0)), biases);
  require_equal("bias_values", int64_t(bias_values.shape(0)), biases);
  for (int64_t i = 0; i < biases; i++) {
    require(bias_rows(i) >= (i ? bias_rows(i - 1) : 0) && bias_rows(i) < rows, "bias_rows: expected ascending rows");
    require(bias_ids(i) >= 0 && bias_ids(i) < vocabulary, "bias: token " + std::to_string(bias_ids(i)) + ": the vocabulary has " + std::to_string(vocabulary));
  }
  const bool masked = bitmask.shape(0) > 0;
  if (masked) require_equal("rows of the bitmask", int64_t(bitmask.shape(0)), rows);
  if (masked) require_equal("words of the bitmask", int64_t(bitmask.shape(1)), (vocabulary + 31) / 32);
  Outs outs{token_ids, logprobs, logsumexp, top_ids, top_logprobs, finite};
  const HeadAnswer out = outs.checked(rows, vocabulary);
  const HeadQuery query{temperature.data(), top_p.data(), min_p.data(), top_k.data(), position.data(), seed.data(), bias_rows.data(), bias_ids.data(),
                        bias_values.data(), biases, masked ? bitmask.data() : nullptr, nullptr, int64_t(top_ids.shape(1))};
  answer(weights, hidden, query, out);
}

void score_targets(const PackedWeights& weights, InRows hidden, Integers targets, OutIntegers token_ids, Vector logprobs, Vector logsumexp,
                   OutIntegerRows top_ids, Rows top_logprobs, OutFlags finite) {
  const int64_t rows = checked_rows(weights, hidden);
  require_equal("targets", int64_t(targets.shape(0)), rows);
  check_ids(targets, weights.matrix());
  Outs outs{token_ids, logprobs, logsumexp, top_ids, top_logprobs, finite};
  const HeadAnswer out = outs.checked(rows, weights.matrix().rows);
  HeadQuery query{};
  query.targets = targets.data(), query.num_top = int64_t(top_ids.shape(1));
  answer(weights, hidden, query, out);
}

}  // namespace

void bind_head(nb::module_& module) {
  module.def("select_tokens", &select_tokens, nb::arg("weights"), nb::arg("hidden"), nb::arg("temperature"), nb::arg("top_k"), nb::arg("top_p"),
             nb::arg("min_p"), nb::arg("seed"), nb::arg("position"), nb::arg("bias_rows"), nb::arg("bias_ids"), nb::arg("bias_values"), nb::arg("bitmask"),
             nb::arg("token_ids"), nb::arg("logprobs"), nb::arg("logsumexp"), nb::arg("top_ids"), nb::arg("top_logprobs"), nb::arg("finite"));
  module.def("score_targets", &score_targets, nb::arg("weights"), nb::arg("hidden"), nb::arg("targets"), nb::arg("token_ids"), nb::arg("logprobs"),
             nb::arg("logsumexp"), nb::arg("top_ids"), nb::arg("top_logprobs"), nb::arg("finite"));
}

}  // namespace fourbee
