// Part of kernels.cpp, which includes it inside its namespaces: heads, pages of keys and values, and attention over them.

constexpr float kLowest = -std::numeric_limits<float>::infinity();

void rotate_heads(const HeadRotation& r, int64_t row_begin, int64_t row_end) {
  const int64_t half = r.head_dim / 2;
  std::vector<float> scratch(r.head_dim);
  float* x = scratch.data();
  for (int64_t row = row_begin; row < row_end; row++) {
    const float *cos = r.cos + row * half, *sin = r.sin + row * half;
    for (int64_t head = 0; head < r.heads; head++) {
      const int64_t at = (row * r.heads + head) * r.head_dim;
      normed(r.x + at, r.norm, r.eps, r.head_dim, x);
      float* out = r.out + at;
      for (int64_t d = 0; d < half; d++) {
        out[d] = x[d] * cos[d] - x[d + half] * sin[d];
        out[d + half] = x[d + half] * cos[d] + x[d] * sin[d];
      }
    }
  }
}

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

// One query head of one row: where its query lies and how many keys it sees.
struct QueryRow {
  const float* query;
  int64_t visible;
};

#include "attention_int8.inl"

void store_keys(const PageLayout& layout, uint8_t* const* pages, int64_t layer, int64_t position,
                const float* key, const float* value) {
  for (int64_t head = 0; head < layout.heads; head++) {
    uint8_t* base = pages[position / kPageKeys] + layer * layout.layer_bytes + head * layout.head_bytes;
    const int64_t at = head * layout.head_dim, slot = position % kPageKeys;
    switch (layout.kind) {
      case Kind::f32: store_head<Kind::f32>(base, slot, layout.head_dim, key + at, value + at); break;
      case Kind::bf16: store_head<Kind::bf16>(base, slot, layout.head_dim, key + at, value + at); break;
      default: store_head_int8(base, slot, layout.head_dim, key + at, value + at); break;
    }
  }
}

// Adds one page to the partial sums of R query rows: the softmax runs along (Milakov & Gimelshein
// 2018). A row that sees no key of the page is left as it was.
template <Kind K, int R>
void add_page(const PageHead<K>& page, int64_t first_key, const QueryRow* rows, float scale, Partial* partials) {
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
    const int64_t seen = std::min(kPageKeys, rows[r].visible - first_key);
    fade[r] = 1.0f;
    std::fill(weights[r], weights[r] + kPageKeys, 0.0f);
    if (seen <= 0) continue;
    for (int b = 0; b < 4; b++) {
      store(weights[r] + 16 * b, mul(scores[r][b], all(scale)));
    }
    std::fill(weights[r] + seen, weights[r] + kPageKeys, kLowest);
    F top = load(weights[r]);
    for (int b = 1; b < 4; b++) top = max(top, load(weights[r] + 16 * b));
    const float peak = std::max(partials[r].largest, largest(top));
    fade[r] = exp(partials[r].largest - peak);
    partials[r].largest = peak;
    F total = zero();
    for (int b = 0; b < 4; b++) store(weights[r] + 16 * b, exp(sub(load(weights[r] + 16 * b), all(peak))));
    std::fill(weights[r] + seen, weights[r] + kPageKeys, 0.0f);
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

template <Kind K>
void add_pages(const PageLayout& layout, const AttentionRows& a, int64_t head, int64_t page_begin,
               int64_t page_end, const QueryRow* rows, int64_t count, Partial* partials) {
  for (int64_t p = page_begin; p < page_end; p++) {
    const PageHead<K> page{a.pages[p] + a.layer * layout.layer_bytes + head * layout.head_bytes, layout.head_dim};
    const int64_t first = p * kPageKeys;
    for (int64_t r = 0; r < count; r += 4) {
      switch (std::min<int64_t>(4, count - r)) {
        case 1: add_page<K, 1>(page, first, rows + r, a.scale, partials + r); break;
        case 2: add_page<K, 2>(page, first, rows + r, a.scale, partials + r); break;
        case 3: add_page<K, 3>(page, first, rows + r, a.scale, partials + r); break;
        default: add_page<K, 4>(page, first, rows + r, a.scale, partials + r); break;
      }
    }
  }
}

void clear(Partial& partial, int64_t head_dim) {
  partial.largest = kLowest;
  partial.weight = 0;
  std::fill(partial.sum, partial.sum + head_dim, 0.0f);
}

int64_t query_offset(const PageLayout& layout, const AttentionRows& a, int64_t row, int64_t query_head) {
  return (row * a.query_heads + query_head) * layout.head_dim;
}

// Query rows of one task; `rounded` where keys are int8.
struct QueryRows {
  QueryRows(const PageLayout& layout, const AttentionRows& a, int64_t head, int64_t row_begin, int64_t row_end) {
    const int64_t group = a.query_heads / layout.heads;
    for (int64_t row = row_begin; row < row_end; row++)
      for (int64_t i = 0; i < group; i++)
        rows.push_back({a.query + query_offset(layout, a, row, head * group + i), a.start + row + 1});
    if (layout.kind == Kind::int8) rounded = rounded_queries(rows.data(), count(), layout.head_dim, a.scale);
  }
  int64_t count() const { return int64_t(rows.size()); }

  std::vector<QueryRow> rows;
  IntegerRows rounded;
};

// Pages of one split of the keys.
void sum_split(const PageLayout& layout, const AttentionRows& a, int64_t head, int64_t split, const QueryRows& queries,
               Partial* partials) {
  constexpr int64_t pages_a_split = kSplitKeys / kPageKeys;
  const int64_t count = queries.count();
  const QueryRow* rows = queries.rows.data();
  int64_t visible = 0;
  for (int64_t r = 0; r < count; r++) {
    clear(partials[r], layout.head_dim);
    visible = std::max(visible, rows[r].visible);
  }
  const int64_t begin = split * pages_a_split;
  const int64_t end = std::min(begin + pages_a_split, (visible + kPageKeys - 1) / kPageKeys);
  switch (layout.kind) {
    case Kind::f32: return add_pages<Kind::f32>(layout, a, head, begin, end, rows, count, partials);
    case Kind::bf16: return add_pages<Kind::bf16>(layout, a, head, begin, end, rows, count, partials);
    default: return add_pages_int8(layout, a, head, begin, end, queries.rounded.rows.data(), count, partials);
  }
}

void join_into(Partial& all_keys, const Partial& split, int64_t head_dim) {
  if (split.weight == 0.0f) return;  // it saw no key of this split
  const float peak = std::max(all_keys.largest, split.largest);
  const float old_share = exp(all_keys.largest - peak), new_share = exp(split.largest - peak);
  all_keys.largest = peak;
  all_keys.weight = all_keys.weight * old_share + split.weight * new_share;
  for (int64_t d = 0; d < head_dim; d += 16)
    store(all_keys.sum + d, fma(load(split.sum + d), all(new_share), mul(load(all_keys.sum + d), all(old_share))));
}

void finish(const Partial& partial, int64_t head_dim, float* out) {
  const F inverse = all(1.0f / partial.weight);
  for (int64_t d = 0; d < head_dim; d += 16) store(out + d, mul(load(partial.sum + d), inverse));
}

void attend(const PageLayout& layout, const AttentionRows& a, int64_t head, int64_t row_begin, int64_t row_end) {
  const int64_t group = a.query_heads / layout.heads, count = (row_end - row_begin) * group, width = layout.head_dim;
  const QueryRows queries(layout, a, head, row_begin, row_end);
  std::vector<Partial> totals(count), partials(count);
  std::vector<float> sums(2 * count * width);
  for (int64_t i = 0; i < count; i++) {
    totals[i].sum = sums.data() + 2 * i * width;
    partials[i].sum = totals[i].sum + width;
    clear(totals[i], width);
  }
  const int64_t splits = (a.start + row_end + kSplitKeys - 1) / kSplitKeys;
  for (int64_t split = 0; split < splits; split++) {
    sum_split(layout, a, head, split, queries, partials.data());
    for (int64_t i = 0; i < count; i++) join_into(totals[i], partials[i], width);
  }
  for (int64_t i = 0; i < count; i++)
    finish(totals[i], width, a.out + query_offset(layout, a, row_begin + i / group, head * group + i % group));
}

void attend_split(const PageLayout& layout, const AttentionRows& a, int64_t head, int64_t row, int64_t split,
                  Partial* partials) {
  sum_split(layout, a, head, split, QueryRows(layout, a, head, row, row + 1), partials);
}

void join(const PageLayout& layout, const AttentionRows& a, int64_t head, int64_t row, const Partial* partials,
          int64_t splits) {
  const int64_t group = a.query_heads / layout.heads, width = layout.head_dim;
  std::vector<float> sums(width);
  for (int64_t i = 0; i < group; i++) {
    Partial total{0, 0, sums.data()};
    clear(total, width);
    for (int64_t split = 0; split < splits; split++) join_into(total, partials[split * group + i], width);
    finish(total, width, a.out + query_offset(layout, a, row, head * group + i));
  }
}
