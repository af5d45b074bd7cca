// Part of kernels.cpp, which includes it inside its namespaces: heads, pages of keys and values, and attention over them.

// Pairs (d, d + half) turned by their angles, or back.
template <bool Back>
void rotate(const float* x, const float* cos, const float* sin, int64_t half, float* out) {
  int64_t d = 0;
  for (; d + 16 <= half; d += 16) {
    const F first = load(x + d), second = load(x + d + half), c = load(cos + d);
    const F s = Back ? sub(zero(), load(sin + d)) : load(sin + d);
    store(out + d, sub(mul(first, c), mul(second, s)));
    store(out + d + half, add(mul(second, c), mul(first, s)));
  }
  for (; d < half; d++) {
    const float s = Back ? -sin[d] : sin[d];
    out[d] = x[d] * cos[d] - x[d + half] * s;
    out[d + half] = x[d + half] * cos[d] + x[d] * s;
  }
}

void rotate_heads(const HeadRotation& r, int64_t row_begin, int64_t row_end) {
  const int64_t half = r.head_dim / 2;
  std::vector<float> scratch(r.head_dim);
  float* x = scratch.data();
  for (int64_t row = row_begin; row < row_end; row++) {
    const float *cos = r.cos + row * half, *sin = r.sin + row * half;
    for (int64_t head = 0; head < r.heads; head++) {
      const int64_t at = (row * r.heads + head) * r.head_dim;
      normed(r.x + at, r.norm, r.eps, r.head_dim, x);
      rotate<false>(x, cos, sin, half, r.out + at);
    }
  }
}

constexpr int64_t kSplitPages = kSplitKeys / kPageKeys;
constexpr float kLowest = -std::numeric_limits<float>::infinity();

#include "attention_views.inl"
#include "attention_float.inl"
#include "attention_int8.inl"
#include "attention_int4.inl"

// Whether pages hold these numbers as finite ones.
bool fits(const PageLayout& layout, const float* x) {
  const float most = layout.kind == Kind::int4   ? 65520.0f      // from here on float16 rounds to infinity
                     : layout.kind == Kind::bf16 ? 0x1.ffp127f  // and bfloat16
                                                 : std::numeric_limits<float>::infinity();
  uint32_t below_most = 0xffff;
  for (int64_t d = 0; d < layout.head_dim; d += 16) below_most &= below(abs(load(x + d)), all(most));
  return below_most == 0xffff;
}

// A value that is not finite makes its key NaN and is 0 itself: NaN reaches the rows that see the key, and no other, as
// the weights of keys unseen are 0, and 0 times infinity would be NaN.
void store_keys(const PageLayout& layout, uint8_t* const* pages, int64_t layer, int64_t position,
                const float* key, const float* value) {
  const int64_t width = layout.head_dim, slot = position % kPageKeys;
  for (int64_t head = 0; head < layout.heads; head++, key += width, value += width) {
    uint8_t* base = pages[position / kPageKeys] + layer * layout.layer_bytes + head * layout.head_bytes;
    const float *k = key, *v = value;
    std::vector<float> nan, nothing;
    if (!fits(layout, value)) {
      nan.assign(width, std::numeric_limits<float>::quiet_NaN()), nothing.assign(width, 0.0f);
      k = nan.data(), v = nothing.data();
    }
    switch (layout.kind) {
      case Kind::f32: store_head<Kind::f32>(base, slot, width, k, v); break;
      case Kind::bf16: store_head<Kind::bf16>(base, slot, width, k, v); break;
      case Kind::int4: store_head_int4(base, slot, width, layout.group, k, v); break;
      default: store_head_int8(base, slot, width, k, v); break;
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

const uint8_t* page_of(const PageLayout& layout, const AttentionRows& a, int64_t head, int64_t page) {
  return a.pages[page] + a.layer * layout.layer_bytes + head * layout.head_bytes;
}

// Query rows of one task, those of a variant together; `rounded` where keys are integers.
template <class View>
struct Queries {
  void fill(const PageLayout& layout, const AttentionRows& a, int64_t head, int64_t begin, int64_t end) {
    const int64_t group = a.query_heads / layout.heads;
    row_begin = begin, row_end = end, count = (end - begin) * group;
    exact.clear(), rounded.rows.clear();
    for (int64_t variant = 0; variant < a.variants; variant++)
      for (int64_t row = begin; row < end; row++)
        for (int64_t i = 0; i < group; i++) {
          View view{};
          if constexpr (std::is_same_v<View, CausalView>) view.visible = a.start + row + 1;
          exact.push_back({a.query + variant * a.variant_size + query_offset(layout, a, row, head * group + i), view});
        }
    if (is_grouped(layout.kind)) round_queries(exact.data(), int64_t(exact.size()), layout.head_dim, layout.groups(), a.scale, rounded);
  }

  std::vector<QueryRow<View>> exact;
  IntegerRows<View> rounded;
  int64_t row_begin = 0, row_end = 0, count = 0;
};

// A thread's queries, whose memory is used over and over: single rows with few keys take no longer than allocating.
template <class View>
const Queries<View>& queries_of(const PageLayout& layout, const AttentionRows& a, int64_t head, int64_t begin, int64_t end) {
  static thread_local Queries<View> queries;
  queries.fill(layout, a, head, begin, end);
  return queries;
}

// Adds a page to the partial sums of rows; `next` is the page after it.
template <class View>
void add_keys(const PageLayout& layout, const uint8_t* page, const uint8_t* next, int64_t first_key, const Queries<View>& queries,
              float scale, Partial* partials) {
  const QueryRow<View>* rows = queries.exact.data();
  const int64_t width = layout.head_dim;
  switch (layout.kind) {
    case Kind::f32: return add_rows(PageHead<Kind::f32>{page, width}, first_key, rows, queries.count, scale, partials);
    case Kind::bf16: return add_rows(PageHead<Kind::bf16>{page, width}, first_key, rows, queries.count, scale, partials);
    case Kind::int4: return add_rows_int4({page, width, layout.group}, first_key, queries.rounded.rows.data(), queries.count, partials);
    default: return add_rows_int8({page, next, width}, first_key, queries.rounded.rows.data(), queries.count, partials);
  }
}

static_assert(kSplitPages == 8, "a byte of `seen` is a split");

// The pages of a split that a tile of rows sees, a bit each.
uint8_t seen_pages(const AttentionRows& a, int64_t row, int64_t split) {
  return a.seen ? a.seen[row / kPageKeys * a.seen_bytes + split] : 0xff;
}

// Pages of one split of the keys.
void sum_split(const PageLayout& layout, const AttentionRows& a, int64_t head, int64_t split, const Queries<CausalView>& queries,
               Partial* partials) {
  for (int64_t r = 0; r < queries.count; r++) clear(partials[r], layout.head_dim);
  const int64_t begin = split * kSplitPages, visible = a.start + queries.row_end;
  const int64_t end = std::min(begin + kSplitPages, (visible + kPageKeys - 1) / kPageKeys);
  const uint8_t seen = seen_pages(a, queries.row_begin, split);
  const auto next_seen = [&](int64_t p) {
    while (p < end && !(seen >> (p - begin) & 1)) p++;
    return p;
  };
  for (int64_t p = next_seen(begin), next; p < end; p = next) {
    next = next_seen(p + 1);
    add_keys(layout, page_of(layout, a, head, p), page_of(layout, a, head, next < end ? next : p), p * kPageKeys, queries,
             a.scale, partials);
  }
}

#include "attention_pattern.inl"

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

template <class View>
void attend_as(const PageLayout& layout, const AttentionRows& a, int64_t head, int64_t row_begin, int64_t row_end) {
  const Queries<View>& queries = queries_of<View>(layout, a, head, row_begin, row_end);
  const int64_t group = a.query_heads / layout.heads, count = queries.count, width = layout.head_dim;
  static thread_local std::vector<Partial> totals, partials;
  static thread_local std::vector<float> sums;
  totals.resize(count), partials.resize(count), sums.resize(2 * count * width);
  for (int64_t i = 0; i < count; i++) {
    totals[i].sum = sums.data() + 2 * i * width;
    partials[i].sum = totals[i].sum + width;
    clear(totals[i], width);
  }
  const int64_t splits = (a.start + row_end + kSplitKeys - 1) / kSplitKeys;
  for (int64_t split = 0; split < splits; split++) {
    if (std::is_same_v<View, SpanView> ? !sees_split(a, split, row_begin, row_end) : !seen_pages(a, row_begin, split)) continue;
    sum_split(layout, a, head, split, queries, partials.data());
    for (int64_t i = 0; i < count; i++) join_into(totals[i], partials[i], width);
  }
  for (int64_t i = 0; i < count; i++)
    finish(totals[i], width, a.out + query_offset(layout, a, row_begin + i / group, head * group + i % group));
}

void attend(const PageLayout& layout, const AttentionRows& a, int64_t head, int64_t row_begin, int64_t row_end) {
  if (a.spans) return attend_as<SpanView>(layout, a, head, row_begin, row_end);
  attend_as<CausalView>(layout, a, head, row_begin, row_end);
}

void attend_split(const PageLayout& layout, const AttentionRows& a, int64_t head, int64_t row, int64_t split,
                  Partial* partials) {
  if (a.spans) return sum_split(layout, a, head, split, queries_of<SpanView>(layout, a, head, row, row + 1), partials);
  sum_split(layout, a, head, split, queries_of<CausalView>(layout, a, head, row, row + 1), partials);
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
