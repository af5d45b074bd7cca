// Part of kernels.cpp, which includes it inside its namespaces: int8 keys and values, both products in integers
// (the idea of SageAttention, Zhang et al. 2024, arXiv 2410.02367).
//
// One head of one layer of a page, bytes with 128 added:
//   keys   [4 blocks of 16 keys][K / 4][16 keys x 4 dimensions]
//   values [16 quads of keys][K / 16][16 dimensions x 4 keys]
//   a float32 scale of each of the 64 keys, then of each of the 64 values.
// Queries are rounded once. The weights of a row and page are rounded by the largest weight times value scale among the
// keys that this row sees there: any wider statistic would lose what stands behind an attention sink, or let
// later tokens into a row's numbers. Integer sums are exact, so that tiles of any height give the same bits.

template <class View>
struct IntegerRow {
  const int8_t* query;  // [K]
  float scale;          // of the query, and of the softmax
  int32_t start;        // -128 * sum of the query: what the 128 added to the keys comes to
  const float* sums;    // of the query's integers, a group of dimensions each (for int4)
  View view;
};

struct IntegerPage {
  const uint8_t* base;
  const uint8_t* next;  // the page that is read after this one; null when there is none
  int64_t head_dim;
  const uint8_t* values() const { return base + kPageKeys * head_dim; }
  const float* key_scales() const { return reinterpret_cast<const float*>(base + 2 * kPageKeys * head_dim); }
  const float* value_scales() const { return key_scales() + kPageKeys; }
};

void store_head_int8(uint8_t* base, int64_t slot, int64_t head_dim, const float* key, const float* value) {
  std::vector<int8_t> rounded(head_dim);
  float* scales = reinterpret_cast<float*>(base + 2 * kPageKeys * head_dim);
  int32_t unused;
  quantise(key, head_dim, rounded.data(), scales + slot, &unused);
  uint8_t* keys = base + slot / 16 * head_dim * 16 + slot % 16 * 4;
  for (int64_t d = 0; d < head_dim; d += 4) {
    const int32_t four = four_bytes(rounded.data() + d) ^ int32_t(0x80808080);  // 128 added to each
    std::memcpy(keys + d * 16, &four, 4);
  }
  quantise(value, head_dim, rounded.data(), scales + kPageKeys + slot, &unused);
  uint8_t* values = base + kPageKeys * head_dim + slot / 4 * head_dim * 4 + slot % 4;
  for (int64_t d = 0; d < head_dim; d++) values[d * 4] = uint8_t(rounded[d] + 128);
}

// Scores of M rows and the page's first `keys_seen` keys, in integers; those of others mean nothing. Few rows wait for memory:
// they ask for the values meanwhile.
template <int M, bool Ahead, class View>
inline void page_scores(const IntegerPage& page, const IntegerRow<View>* rows, int64_t keys_seen, I (&scores)[M][4]) {
  const int64_t steps = page.head_dim / 4;
#pragma GCC unroll 8
  for (int m = 0; m < M; m++)
    for (int b = 0; b < 4; b++) scores[m][b] = all(rows[m].start);
  if (keys_seen < kPageKeys) {  // the rest of the page is not even read
    for (int64_t line = 0; Ahead && line < keys_seen * page.head_dim / 64; line++) prefetch(page.values() + line * 64);
    for (int b = 0; b * 16 < keys_seen; b++)
      for (int64_t s = 0; s < steps; s++) {
        const B keys = load_bytes(page.base + (b * steps + s) * 64);
#pragma GCC unroll 8
        for (int m = 0; m < M; m++) scores[m][b] = dot4(scores[m][b], keys, four_bytes(rows[m].query + s * 4));
      }
    return;
  }
  for (int64_t s = 0; s < steps; s++) {
    B keys[4];
#pragma GCC unroll 4
    for (int b = 0; b < 4; b++) {
      keys[b] = load_bytes(page.base + (b * steps + s) * 64);
      if (Ahead) prefetch(page.values() + (s * 4 + b) * 64);
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; m++) {
      const int32_t four = four_bytes(rows[m].query + s * 4);
#pragma GCC unroll 4
      for (int b = 0; b < 4; b++) scores[m][b] = dot4(scores[m][b], keys[b], four);
    }
  }
}

// The weights of one row and page, rounded: value = integer * factor / 127. `fade` comes later: what was summed before
// counts exp(before - partial.largest) from now on.
struct RoundedWeights {
  alignas(64) int8_t integers[kPageKeys];
  float factor, total;
  int32_t start;  // -128 * sum of the integers
};

// Scores of a page, which become weights: their exponentials relative to the largest score that the row has met. The
// result is their sum, lane by lane. Of keys unseen e^-87: nothing in a sum, but their values may be huge (`hide_unseen`).
inline F running_weights(const Seen& seen, F (&lines)[4], Partial& partial) {
  if (seen.count() < kPageKeys) {
    float kept[kPageKeys];
    for (int b = 0; b < 4; b++) store(kept + 16 * b, lines[b]);
    fill_unseen(kept, seen, kLowest);
    for (int b = 0; b < 4; b++) lines[b] = load(kept + 16 * b);
  }
  const F top = max(max(lines[0], lines[1]), max(lines[2], lines[3]));
  partial.largest = std::max(partial.largest, largest(top));
  const F peak = all(partial.largest);
  F total = zero();
  for (int b = 0; b < 4; b++) {
    lines[b] = exp(sub(lines[b], peak));
    total = add(total, lines[b]);
  }
  return total;
}

// Rounds weights that are not negative: weight = integer * factor. The result is the sum of the integers, NaN where a
// weight is: the factor shows it. Weights by whose largest 127 cannot be divided come to nothing: e^-83 of what the row
// has met, times a value's scale.
inline float round_weights(const F (&lines)[4], int8_t* integers, float& factor) {
  const float most = largest(max(max(lines[0], lines[1]), max(lines[2], lines[3])));
  const F inverse = all(most > 0x1p-120f ? 127.0f / most : 0.0f);
  F added = zero();
  for (int b = 0; b < 4; b++) {
    const F rounded = round(mul(lines[b], inverse));
    added = add(added, rounded);
    store_i8(integers + 16 * b, to_int(rounded));
  }
  const float sum_of_integers = sum(added);
  factor = most / 127.0f + sum_of_integers * 0.0f;
  return sum_of_integers;
}

template <class View>
inline void page_weights(const IntegerPage& page, const IntegerRow<View>& row, int64_t first_key, const I (&scores)[4],
                         Partial& partial, RoundedWeights& out) {
  const Seen seen = row.view.seen(first_key);
  if (seen.count() <= 0) {
    std::memset(out.integers, 0, sizeof out.integers);
    out.factor = out.total = 0;
    out.start = 0;
    return;
  }
  F lines[4];
  for (int b = 0; b < 4; b++) {
    const F product = mul(to_float(scores[b]), mul(all(row.scale), load(page.key_scales() + 16 * b)));
    lines[b] = row.view.score(product, first_key + 16 * b);
  }
  out.total = sum(running_weights(seen, lines, partial));
  for (int b = 0; b < 4; b++) lines[b] = mul(lines[b], load(page.value_scales() + 16 * b));
  hide_unseen(seen, lines);
  const float integers = round_weights(lines, out.integers, out.factor);
  out.start = integers == integers ? -128 * int32_t(integers) : 0;
}

// Adds the page's weighted values to the sums of M rows, NB blocks of 16 dimensions from `block` on.
template <int M, int NB, bool Ahead>
inline void page_values(const IntegerPage& page, int64_t keys_seen, int64_t block, const RoundedWeights* weights, const float* fades, Partial* partials) {
  const int64_t blocks = page.head_dim / 16;
  I sums[M][NB];
#pragma GCC unroll 8
  for (int m = 0; m < M; m++)
    for (int b = 0; b < NB; b++) sums[m][b] = all(weights[m].start);
  for (int64_t quad = 0; quad * 4 < keys_seen; quad++) {
    B values[NB];
#pragma GCC unroll 4
    for (int b = 0; b < NB; b++) {
      const int64_t line = (quad * blocks + block + b) * 64;
      values[b] = load_bytes(page.values() + line);
      if (Ahead) prefetch(page.next + line);
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; m++) {
      const int32_t four = four_bytes(weights[m].integers + quad * 4);
#pragma GCC unroll 4
      for (int b = 0; b < NB; b++) sums[m][b] = dot4(sums[m][b], values[b], four);
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; m++)
#pragma GCC unroll 4
    for (int b = 0; b < NB; b++) {
      float* out = partials[m].sum + (block + b) * 16;
      store(out, fma(to_float(sums[m][b]), all(weights[m].factor), mul(load(out), all(fades[m]))));
    }
}

template <int M, bool Ahead, class View>
void add_page_int8(const IntegerPage& page, int64_t first_key, const IntegerRow<View>* rows, Partial* partials) {
  int64_t keys_seen = 0;  // up to the last that any row sees: the weights of others are 0
  for (int m = 0; m < M; m++) keys_seen = std::max(keys_seen, rows[m].view.seen(first_key).end);
  I scores[M][4];
  page_scores<M, Ahead>(page, rows, keys_seen, scores);
  RoundedWeights weights[M];
  float before[16] = {}, after[16] = {}, fades[16];
  for (int m = 0; m < M; m++) {
    before[m] = partials[m].largest;
    page_weights(page, rows[m], first_key, scores[m], partials[m], weights[m]);
    after[m] = partials[m].largest;
    if (after[m] == before[m]) before[m] = after[m] = 0;  // also where nothing was seen yet: no -inf - -inf
  }
  store(fades, exp(sub(load(before), load(after))));
  for (int m = 0; m < M; m++) partials[m].weight = partials[m].weight * fades[m] + weights[m].total;
  const int64_t blocks = page.head_dim / 16;
  int64_t block = 0;
  for (; block + 4 <= blocks; block += 4) page_values<M, 4, Ahead>(page, keys_seen, block, weights, fades, partials);
  for (; block < blocks; block++) page_values<M, 1, Ahead>(page, keys_seen, block, weights, fades, partials);
}

template <bool Ahead, class View>
void add_rows_int8(const IntegerPage& page, int64_t first_key, const IntegerRow<View>* rows, int64_t count, Partial* partials) {
  for (int64_t r = 0; r < count; r += 6) {
    switch (std::min<int64_t>(6, count - r)) {
      case 1: add_page_int8<1, Ahead>(page, first_key, rows + r, partials + r); break;
      case 2: add_page_int8<2, Ahead>(page, first_key, rows + r, partials + r); break;
      case 3: add_page_int8<3, Ahead>(page, first_key, rows + r, partials + r); break;
      case 4: add_page_int8<4, Ahead>(page, first_key, rows + r, partials + r); break;
      case 5: add_page_int8<5, Ahead>(page, first_key, rows + r, partials + r); break;
      default: add_page_int8<6, Ahead>(page, first_key, rows + r, partials + r); break;
    }
  }
}

template <class View>
void add_rows_int8(const IntegerPage& page, int64_t first_key, const IntegerRow<View>* rows, int64_t count, Partial* partials) {
  if (count <= 6) {
    add_rows_int8<true>(page, first_key, rows, count, partials);
  } else {
    add_rows_int8<false>(page, first_key, rows, count, partials);
  }
}

inline float sum_of(const int8_t* values, int64_t count) {
  F total = zero();
  for (int64_t d = 0; d < count; d += 16) total = add(total, load_i8(values + d));  // whole numbers: exact
  return sum(total);
}

// Queries rounded, for one task: `values` holds their integers, `sums` those of groups of dimensions.
template <class View>
struct IntegerRows {
  std::vector<int8_t> values;
  std::vector<float> sums;
  std::vector<IntegerRow<View>> rows;
};

template <class View>
void round_queries(const QueryRow<View>* queries, int64_t count, int64_t head_dim, int64_t groups, float scale, IntegerRows<View>& out) {
  out.values.resize(count * head_dim), out.sums.resize(count * groups), out.rows.resize(count);
  for (int64_t r = 0; r < count; r++) {
    int8_t* values = out.values.data() + r * head_dim;
    float own;
    int32_t total;
    quantise(queries[r].query, head_dim, values, &own, &total);
    float* sums = out.sums.data() + r * groups;
    for (int64_t g = 0; g < groups; g++) sums[g] = sum_of(values + g * (head_dim / groups), head_dim / groups);
    out.rows[r] = {values, own * scale, -128 * total, sums, queries[r].view};
  }
}
