// The kernels, written once over simd.h and compiled once for each instruction set.
//
// Numbers: a row's result depends on that row alone. Every output element is summed over its
// columns in order by one accumulator, whatever tile it falls into; keys are summed in splits of
// kSplitKeys, which are joined in order; there is one exponential.
#include "kernels.h"

#include <algorithm>
#include <limits>
#include <type_traits>
#include <vector>

#include "noise.h"
#include "simd.h"

namespace fourbee {
namespace {

#include "rows.inl"
#include "products.inl"
#include "packing.inl"
#include "attention.inl"
#include "head.inl"
#include "gradients.inl"
#include "documents.inl"
#include "peaks.inl"

}  // namespace

#define FOURBEE_JOINED_(a, b) a##b
#define FOURBEE_JOINED(a, b) FOURBEE_JOINED_(a, b)
#define FOURBEE_STRING_(a) #a
#define FOURBEE_STRING(a) FOURBEE_STRING_(a)

const Kernels FOURBEE_JOINED(kernels_, FOURBEE_ISA_NAME) = {
    FOURBEE_STRING(FOURBEE_ISA_NAME), prepare, multiply, norm, rotate_heads, pack_block, unpack_row,
    store_keys, attend, attend_split, join,
    scan_logits, scaled_mass, gather_logits, sample_logits,
    norm_gradient, head_gradient, swiglu, swiglu_gradient, attend_document, document_gradient,
    spin_int8, spin_bf16, read_bytes,
};

}  // namespace fourbee
