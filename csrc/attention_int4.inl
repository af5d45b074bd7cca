// Part of kernels.cpp, which includes it inside its namespaces: 4-bit keys and values, `scale * nibble + minimum` in groups
// of dimensions; products in integers as in attention_int8.inl.
//
// One head of one layer of a page, G groups:
//   keys   [4 blocks of 16 keys][K / 8][16 keys x 4 dimensions], the next 4 dimensions in the high halves
//   values [8 octets of keys][K / 16][16 dimensions x 4 keys], the next 4 keys in the high halves
//   float16 scales [G][64] of the keys, their minimums; scales of the values, their minimums.
// A group's scores are summed up in integers and scaled key by key; the minimums take the sum of the query's integers. For
// values the scales go into the weights, which are rounded anew for each group, and the minimums into one number a row.

struct NibblePage {
  const uint8_t* base;
  int64_t head_dim, group;

  B keys(int64_t block, int64_t step) const { return load_bytes(base + (block * (head_dim / 8) + step) * 64); }
  B values(int64_t octet, int64_t block) const {
    return load_bytes(base + (kPageKeys / 2) * head_dim + (octet * (head_dim / 16) + block) * 64);
  }
  // Of 16 keys from `key` on; kinds 0 to 3: keys' scales and minimums, values' scales and minimums.
  F numbers(int64_t kind, int64_t g, int64_t key) const {
    const uint16_t* halves = reinterpret_cast<const uint16_t*>(base + kPageKeys * head_dim);
    return load_f16(halves + (kind * (head_dim / group) + g) * kPageKeys + key);
  }
};

// One group's nibbles; scale and minimum as float16. What is too large for them, and NaN, makes them infinite or NaN.
void quantise_nibbles(const float* x, int64_t count, uint8_t* out, uint16_t* scale, uint16_t* minimum) {
  float low = x[0], high = x[0], poison = 0;
  for (int64_t d = 0; d < count; d++) {
    low = std::min(low, x[d]), high = std::max(high, x[d]);
    poison += x[d] * 0.0f;
  }
  *minimum = float_to_half(low + poison);
  const float start = half_to_float(*minimum);
  *scale = float_to_half((high - start) / 15.0f + poison);
  const float step = half_to_float(*scale), inverse = step > 0 ? 1.0f / step : 0.0f;
  for (int64_t d = 0; d < count; d++) {
    const float steps = (x[d] - start) * inverse;
    out[d] = steps > 0 ? uint8_t(std::min(15.0f, std::nearbyint(steps))) : 0;
  }
}

void store_head_int4(uint8_t* base, int64_t slot, int64_t head_dim, int64_t group, const float* key, const float* value) {
  std::vector<uint8_t> nibbles(head_dim);
  uint16_t* halves = reinterpret_cast<uint16_t*>(base + kPageKeys * head_dim);
  const int64_t groups = head_dim / group, kinds = groups * kPageKeys;
  const auto put_half = [](uint8_t* byte, uint8_t nibble, bool high) {
    *byte = high ? uint8_t((*byte & 15) | nibble << 4) : uint8_t((*byte & 0xf0) | nibble);
  };
  for (int64_t g = 0; g < groups; g++) {
    uint16_t* numbers = halves + g * kPageKeys + slot;
    quantise_nibbles(key + g * group, group, nibbles.data() + g * group, numbers, numbers + kinds);
  }
  uint8_t* keys = base + slot / 16 * (head_dim / 8) * 64 + slot % 16 * 4;
  for (int64_t d = 0; d < head_dim; d++) put_half(keys + d / 8 * 64 + d % 4, nibbles[d], d % 8 >= 4);
  for (int64_t g = 0; g < groups; g++) {
    uint16_t* numbers = halves + 2 * kinds + g * kPageKeys + slot;
    quantise_nibbles(value + g * group, group, nibbles.data() + g * group, numbers, numbers + kinds);
  }
  uint8_t* values = base + (kPageKeys / 2) * head_dim + slot / 8 * (head_dim / 16) * 64 + slot % 4;
  for (int64_t d = 0; d < head_dim; d++) put_half(values + d * 4, nibbles[d], slot % 8 >= 4);
}

// Scores of M rows and the page's keys but for the scales of the queries.
template <int M, class View>
inline void nibble_scores(const NibblePage& page, const IntegerRow<View>* rows, F (&scores)[M][4]) {
  for (int64_t g = 0; g < page.head_dim / page.group; g++) {
    I sums[M][4];
    for (int m = 0; m < M; m++)
      for (int b = 0; b < 4; b++) sums[m][b] = all(0);
    for (int64_t s = g * page.group / 8; s < (g + 1) * page.group / 8; s++)
#pragma GCC unroll 4
      for (int b = 0; b < 4; b++) {
        const B line = page.keys(b, s), low = low_halves(line), high = high_halves(line);
#pragma GCC unroll 4
        for (int m = 0; m < M; m++) {
          sums[m][b] = dot4_small(sums[m][b], low, four_bytes(rows[m].query + s * 8));
          sums[m][b] = dot4_small(sums[m][b], high, four_bytes(rows[m].query + s * 8 + 4));
        }
      }
    for (int b = 0; b < 4; b++) {
      const F scale = page.numbers(0, g, 16 * b), minimum = page.numbers(1, g, 16 * b);
      for (int m = 0; m < M; m++) {
        const F added = fma(minimum, all(rows[m].sums[g]), g ? scores[m][b] : zero());
        scores[m][b] = fma(to_float(sums[m][b]), scale, added);
      }
    }
  }
}

// The weights of one row, page and group of dimensions: weight * scale = integer * factor. Nibbles count from 8, so that
// less of the rounding is multiplied; `offset` is the sum of weight * (minimum + 8 * scale).
struct GroupWeights {
  alignas(64) int8_t integers[kPageKeys];
  float factor, offset;
  int32_t start;  // -8 * sum of the integers
};

inline void group_weights(const NibblePage& page, int64_t g, const F (&weights)[4], GroupWeights& out) {
  F scaled[4], offset = zero();
  for (int b = 0; b < 4; b++) {
    const F scale = page.numbers(2, g, 16 * b);
    scaled[b] = mul(weights[b], scale);
    offset = fma(weights[b], fma(scale, all(8.0f), page.numbers(3, g, 16 * b)), offset);
  }
  const float integers = round_weights(scaled, out.integers, out.factor);
  out.start = integers == integers ? -8 * int32_t(integers) : 0;
  out.offset = sum(offset);
}

// Adds the page's weighted values to the sums of M rows, NB blocks of 16 dimensions from `block` on, of one group.
template <int M, int NB>
inline void nibble_values(const NibblePage& page, int64_t block, const GroupWeights* weights, const float* fades, Partial* partials) {
  I sums[M][NB];
  for (int m = 0; m < M; m++)
    for (int b = 0; b < NB; b++) sums[m][b] = all(weights[m].start);
  for (int64_t octet = 0; octet < kPageKeys / 8; octet++)
#pragma GCC unroll 4
    for (int b = 0; b < NB; b++) {
      const B line = page.values(octet, block + b), low = low_halves(line), high = high_halves(line);
#pragma GCC unroll 4
      for (int m = 0; m < M; m++) {
        sums[m][b] = dot4_small(sums[m][b], low, four_bytes(weights[m].integers + octet * 8));
        sums[m][b] = dot4_small(sums[m][b], high, four_bytes(weights[m].integers + octet * 8 + 4));
      }
    }
  for (int m = 0; m < M; m++)
    for (int b = 0; b < NB; b++) {
      float* out = partials[m].sum + (block + b) * 16;
      const F before = fma(load(out), all(fades[m]), all(weights[m].offset));
      store(out, fma(to_float(sums[m][b]), all(weights[m].factor), before));
    }
}

template <int M, class View>
void add_page_int4(const NibblePage& page, int64_t first_key, const IntegerRow<View>* rows, Partial* partials) {
  F lines[M][4];
  nibble_scores<M>(page, rows, lines);
  float before[16] = {}, after[16] = {}, fades[16], totals[M];
  for (int m = 0; m < M; m++) {
    const Seen seen = rows[m].view.seen(first_key);
    before[m] = partials[m].largest;
    totals[m] = 0;
    if (seen.count() > 0) {
      for (int b = 0; b < 4; b++) lines[m][b] = rows[m].view.score(mul(lines[m][b], all(rows[m].scale)), first_key + 16 * b);
      totals[m] = sum(running_weights(seen, lines[m], partials[m]));
      hide_unseen(seen, lines[m]);
    } else {
      for (F& line : lines[m]) line = zero();
    }
    after[m] = partials[m].largest;
    if (after[m] == before[m]) before[m] = after[m] = 0;  // also where nothing was seen yet: no -inf - -inf
  }
  store(fades, exp(sub(load(before), load(after))));
  for (int m = 0; m < M; m++) partials[m].weight = partials[m].weight * fades[m] + totals[m];
  for (int64_t g = 0; g < page.head_dim / page.group; g++) {
    GroupWeights weights[M];
    for (int m = 0; m < M; m++) group_weights(page, g, lines[m], weights[m]);
    switch (page.group) {
      case 64: nibble_values<M, 4>(page, g * 4, weights, fades, partials); break;
      case 32: nibble_values<M, 2>(page, g * 2, weights, fades, partials); break;
      default: nibble_values<M, 1>(page, g, weights, fades, partials); break;
    }
  }
}

template <class View>
void add_rows_int4(const NibblePage& page, int64_t first_key, const IntegerRow<View>* rows, int64_t count, Partial* partials) {
  for (int64_t r = 0; r < count; r += 4) {
    switch (std::min<int64_t>(4, count - r)) {
      case 1: add_page_int4<1>(page, first_key, rows + r, partials + r); break;
      case 2: add_page_int4<2>(page, first_key, rows + r, partials + r); break;
      case 3: add_page_int4<3>(page, first_key, rows + r, partials + r); break;
      default: add_page_int4<4>(page, first_key, rows + r, partials + r); break;
    }
  }
}
