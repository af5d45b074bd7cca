// The head on plain pointers: logits, and the token of each row, without ever sorting the vocabulary.
#pragma once
#include <cstdint>

#include "kernels.h"

namespace fourbee {

// What is asked of each row; the fields of HeadRequest in fourbee/kernels/operations.py.
struct HeadQuery {
  const float *temperature, *top_p, *min_p;
  const int64_t *top_k, *position;
  const uint64_t* seed;
  const int64_t *bias_rows, *bias_ids;  // entry i adds bias_values[i] to a logit; rows ascend
  const float* bias_values;
  int64_t biases;
  const uint32_t* bitmask;  // [rows, ceil(vocabulary / 32)] or null
  const int64_t* targets;   // the tokens, where they are given and not to be chosen; or null
  int64_t num_top;
};

struct HeadAnswer {
  int64_t *token_ids, *top_ids;  // top_ids and top_logprobs: [rows, num_top]
  float *logprobs, *logsumexp, *top_logprobs;
  bool* finite;
};

void head_rows(const Matrix& matrix, const float* hidden, int64_t rows, const HeadQuery& query, const HeadAnswer& answer);

}  // namespace fourbee
