// Part of kernels.cpp, which includes it inside its namespaces: which keys a query row sees, and what distance does to
// their scores. Kernels of pages are written once over both views.

struct Seen {
  int64_t begin, end;  // of the 64 keys of a page
  int64_t count() const { return end - begin; }
};

// All keys up to the row's own.
struct CausalView {
  int64_t visible;
  Seen seen(int64_t first_key) const { return {0, std::min(kPageKeys, visible - first_key)}; }
  F score(F product, int64_t) const { return product; }
};

// One span of keys; where there is a slope, scores fall with the distance (ALiBi, Press et al. 2021, arXiv 2108.12409).
struct SpanView {
  int64_t begin, end, position;
  float slope;
  Seen seen(int64_t first_key) const {
    return {std::max<int64_t>(0, begin - first_key), std::min(kPageKeys, end - first_key)};
  }
  F score(F product, int64_t key) const {  // of 16 keys from `key` on
    static constexpr float lanes[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return fma(all(slope), add(all(float(key - position)), load(lanes)), product);
  }
};

// One query head of one row.
template <class View>
struct QueryRow {
  const float* query;
  View view;
};

// Makes finite weights of a page's keys 0 where they are not seen.
inline void hide_unseen(const Seen& seen, F (&lines)[4]) {
  struct Steps {
    float values[3 * kPageKeys];
    constexpr Steps() : values() {
      for (int64_t i = kPageKeys; i < 2 * kPageKeys; i++) values[i] = 1;
    }
  };
  static constexpr Steps steps;  // 0, then 1, then 0: read from where the seen keys begin, and where they end
  if (seen.count() == kPageKeys) return;
  const float *begin = steps.values + kPageKeys - seen.begin, *end = steps.values + 2 * kPageKeys - seen.end;
  for (int b = 0; b < 4; b++) lines[b] = mul(lines[b], mul(load(begin + 16 * b), load(end + 16 * b)));
}

// Keys that the row does not see get this value.
inline void fill_unseen(float* keys, const Seen& seen, float value) {
  std::fill(keys, keys + seen.begin, value);
  std::fill(keys + seen.end, keys + kPageKeys, value);
}
