// Part of kernels.cpp, which includes it inside its namespaces: keys and values in floats.

// One head of one layer of a page of floats: keys [4 x 16 keys][K][16], values [64][K].
template <Kind K>
struct PageHead {
  const uint8_t* base;
  int64_t head_dim;
  static constexpr int64_t size = K == Kind::f32 ? 4 : 2;

  static F lanes(const uint8_t* p) {
    if constexpr (K == Kind::f32) return load(reinterpret_cast<const float*>(p));
    return load_bf16(reinterpret_cast<const uint16_t*>(p));
  }
  F keys(int64_t block, int64_t d) const { return lanes(base + (block * head_dim + d) * 16 * size); }
  F values(int64_t key, int64_t d) const { return lanes(base + ((kPageKeys + key) * head_dim + d) * size); }
};

template <Kind K>
void put(uint8_t* base, int64_t index, float value) {
  if constexpr (K == Kind::f32) std::memcpy(base + index * 4, &value, 4);
  if constexpr (K == Kind::bf16) {
    const uint16_t bits = float_to_bf16(value);
    std::memcpy(base + index * 2, &bits, 2);
  }
}

template <Kind K>
void store_head(uint8_t* base, int64_t slot, int64_t head_dim, const float* key, const float* value) {
  const int64_t key_at = (slot / 16 * head_dim) * 16 + slot % 16, value_at = (kPageKeys + slot) * head_dim;
  for (int64_t d = 0; d < head_dim; d++) put<K>(base, key_at + d * 16, key[d]);
  for (int64_t d = 0; d < head_dim; d++) put<K>(base, value_at + d, value[d]);
}

// Adds one page to the partial sums of R query rows: the softmax runs along (Milakov & Gimelshein
// 2018). A row that sees no key of the page is left as it was.
template <Kind K, int R, class View>
void add_page(const PageHead<K>& page, int64_t first_key, const QueryRow<View>* rows, float scale, Partial* partials) {
  const int64_t head_dim = page.head_dim;
  F scores[R][4];
  for (auto& row : scores)
    for (F& one : row) one = zero();
  for (int64_t d = 0; d < head_dim; d++) {
    F keys[4];
#pragma GCC unroll 4
    for (int b = 0; b < 4; b++) keys[b] = page.keys(b, d);
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) {
      const F q = all(rows[r].query[d]);
#pragma GCC unroll 4
      for (int b = 0; b < 4; b++) scores[r][b] = fma(keys[b], q, scores[r][b]);
    }
  }
  alignas(64) float weights[R][kPageKeys];
  float fade[R];
  for (int r = 0; r < R; r++) {
    const Seen seen = rows[r].view.seen(first_key);
    fade[r] = 1.0f;
    std::fill(weights[r], weights[r] + kPageKeys, 0.0f);
    if (seen.count() <= 0) continue;
    for (int b = 0; b < 4; b++) {
      store(weights[r] + 16 * b, rows[r].view.score(mul(scores[r][b], all(scale)), first_key + 16 * b));
    }
    fill_unseen(weights[r], seen, kLowest);
    F top = load(weights[r]);
    for (int b = 1; b < 4; b++) top = max(top, load(weights[r] + 16 * b));
    const float peak = std::max(partials[r].largest, largest(top));
    fade[r] = exp(partials[r].largest - peak);
    partials[r].largest = peak;
    F total = zero();
    for (int b = 0; b < 4; b++) store(weights[r] + 16 * b, exp(sub(load(weights[r] + 16 * b), all(peak))));
    fill_unseen(weights[r], seen, 0.0f);
    for (int b = 0; b < 4; b++) {
      total = add(total, load(weights[r] + 16 * b));
    }
    partials[r].weight = partials[r].weight * fade[r] + sum(total);
  }
  for (int64_t d = 0; d < head_dim; d += 64) {
    const int lines = int(std::min<int64_t>(4, (head_dim - d) / 16));
    F sums[R][4];
    for (int r = 0; r < R; r++)
      for (int i = 0; i < 4; i++)
        sums[r][i] = i < lines ? mul(load(partials[r].sum + d + 16 * i), all(fade[r])) : zero();
    if (lines == 4) {
      for (int64_t key = 0; key < kPageKeys; key++) {
        F values[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) values[i] = page.values(key, d + 16 * i);
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) {
          const F weight = all(weights[r][key]);
#pragma GCC unroll 4
          for (int i = 0; i < 4; i++) sums[r][i] = fma(values[i], weight, sums[r][i]);
        }
      }
    } else {
      for (int64_t key = 0; key < kPageKeys; key++)
        for (int i = 0; i < lines; i++)
          for (int r = 0; r < R; r++)
            sums[r][i] = fma(page.values(key, d + 16 * i), all(weights[r][key]), sums[r][i]);
    }
    for (int r = 0; r < R; r++)
      for (int i = 0; i < lines; i++) store(partials[r].sum + d + 16 * i, sums[r][i]);
  }
}

template <Kind K, class View>
void add_rows(const PageHead<K>& page, int64_t first_key, const QueryRow<View>* rows, int64_t count, float scale, Partial* partials) {
  for (int64_t r = 0; r < count; r += 4) {
    switch (std::min<int64_t>(4, count - r)) {
      case 1: add_page<K, 1>(page, first_key, rows + r, scale, partials + r); break;
      case 2: add_page<K, 2>(page, first_key, rows + r, scale, partials + r); break;
      case 3: add_page<K, 3>(page, first_key, rows + r, scale, partials + r); break;
      default: add_page<K, 4>(page, first_key, rows + r, scale, partials + r); break;
    }
  }
}
