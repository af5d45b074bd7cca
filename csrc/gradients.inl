// Part of kernels.cpp, which includes it inside its namespaces: what training needs beside products, SwiGLU forwards and
// the gradients of rows. A sum over rows is made block by block (kGradientRows), so that threads do not change it.

// One row: gradients of y = x * inverse * norm, the norm's being added to what is there.
void normed_gradient(const float* x, const float* norm, float eps, const float* grad, int64_t columns, float* grad_x, float* grad_norm) {
  const float inverse = inverse_root_mean_square(x, columns, eps);
  F along = zero();
  int64_t d = 0;
  for (; d + 16 <= columns; d += 16) {
    const F weighed = mul(mul(load(grad + d), load(x + d)), all(inverse));
    store(grad_norm + d, add(load(grad_norm + d), weighed));
    along = fma(weighed, load(norm + d), along);
  }
  float total = sum(along);
  for (; d < columns; d++) {
    const float weighed = grad[d] * x[d] * inverse;
    grad_norm[d] += weighed;
    total += weighed * norm[d];
  }
  const float back = -total / float(columns) * inverse;
  for (d = 0; d + 16 <= columns; d += 16)
    store(grad_x + d, mul(fma(load(x + d), all(back), mul(load(grad + d), load(norm + d))), all(inverse)));
  for (; d < columns; d++) grad_x[d] = (x[d] * back + grad[d] * norm[d]) * inverse;
}

void norm_gradient(const NormGradient& g, int64_t block) {
  float* grad_norm = g.grad_norm + block * g.columns;
  std::fill_n(grad_norm, g.columns, 0.0f);
  for (int64_t row = block * kGradientRows; row < std::min(g.rows, (block + 1) * kGradientRows); row++) {
    const int64_t at = row * g.columns;
    normed_gradient(g.x + at, g.norm, g.eps, g.grad + at, g.columns, g.grad_x + at, grad_norm);
  }
}

// The rotation backwards, then the norm of each head.
void head_gradient(const HeadRotation& r, const NormGradient& g, int64_t block) {
  const int64_t half = r.head_dim / 2;
  float* grad_norm = g.grad_norm + block * r.head_dim;
  std::fill_n(grad_norm, r.head_dim, 0.0f);
  std::vector<float> turned(size_t(r.head_dim));
  for (int64_t row = block * kGradientRows; row < std::min(g.rows, (block + 1) * kGradientRows); row++) {
    const float *cos = r.cos + row * half, *sin = r.sin + row * half;
    for (int64_t head = 0; head < r.heads; head++) {
      const int64_t at = (row * r.heads + head) * r.head_dim;
      rotate<true>(g.grad + at, cos, sin, half, turned.data());
      normed_gradient(r.x + at, r.norm, r.eps, turned.data(), r.head_dim, g.grad_x + at, grad_norm);
    }
  }
}

// In place, as memory is what this waits for: `inner`, the gradient of the product, becomes that of gate; up becomes its
// own gradient, and gate the product silu(gate) * up.
void swiglu_gradient(float* gate, float* up, float* inner, int64_t count) {
  const F one = all(1.0f), nothing = zero();
  const auto lanes = [&](float* at_gate, float* at_up, float* at_inner) {
    const F g = load(at_gate), u = load(at_up), i = load(at_inner);
    const F share = div(one, add(one, exp(sub(nothing, g)))), activated = mul(g, share);
    store(at_gate, mul(activated, u));
    store(at_up, mul(activated, i));
    store(at_inner, mul(mul(i, u), fma(activated, sub(one, share), share)));
  };
  int64_t d = 0;
  for (; d + 16 <= count; d += 16) lanes(gate + d, up + d, inner + d);
  if (d == count) return;
  float rest[3][16] = {};
  float* const whole[3] = {gate + d, up + d, inner + d};
  const size_t bytes = size_t(count - d) * sizeof(float);
  for (int i = 0; i < 3; i++) std::memcpy(rest[i], whole[i], bytes);
  lanes(rest[0], rest[1], rest[2]);
  for (int i = 0; i < 3; i++) std::memcpy(whole[i], rest[i], bytes);
}
