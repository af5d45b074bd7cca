// Every variant of the kernels against plain sums in double, without Python: for machines that are only emulated.
// How to build it is in CONTRIBUTING.md. Prints the largest error of each part; exits 1 where one is too large.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "kernels.h"

using namespace fourbee;
using Floats = std::vector<float>;

static std::mt19937 drawn(1);
static bool failed = false;

static Floats numbers(int64_t count) {
  std::normal_distribution<float> normal;
  Floats x(static_cast<size_t>(count));
  for (float& one : x) one = normal(drawn);
  return x;
}

static void judge(const Kernels& k, const char* what, double error, double allowed) {
  const bool right = error <= allowed;  // false for NaN
  std::printf("%-9s %-22s %.2e of %.0e%s\n", k.name, what, error, allowed, right ? "" : "  TOO MUCH");
  failed |= !right;
}

static double error_of(const Floats& found, const std::vector<double>& true_ones) {
  double wrong = 0, whole = 0;
  for (size_t i = 0; i < found.size(); i++) wrong += std::pow(found[i] - true_ones[i], 2), whole += true_ones[i] * true_ones[i];
  return std::sqrt(wrong / whole);
}

// Products of `count` rows with a packed matrix of 37 rows and 256 columns.
static void check_product(const Kernels& k, Kind kind, int64_t group, bool rotated, int64_t count) {
  static const char* names[] = {"f32", "bf16", "int8", "int4", "int4a", "int4c"};
  static const int64_t bits[] = {32, 16, 8, 4, 4, 4};
  Matrix w{kind, 37, 256, group, 0, rotated, nullptr};
  w.block_bytes = w.columns * kBlockRows * bits[int(kind)] / 8 + (group ? w.columns / group * w.scale_bytes() : 0) + w.base_bytes();
  std::vector<uint8_t> data(size_t(w.blocks() * w.block_bytes));
  Floats packed;
  for (int64_t block = 0; block < w.blocks(); block++) {
    Floats sixteen = numbers(kBlockRows * w.columns);
    packed.insert(packed.end(), sixteen.begin(), sixteen.end());
    uint8_t* at = data.data() + block * w.block_bytes;
    if (kind != Kind::int4a) {
      k.pack_block(w, true, sixteen.data(), at);
    } else {  // packed from numbers: any bytes, and halves from 1/4 to 1/2
      for (int64_t i = 0; i < w.block_bytes; i++) at[i] = uint8_t(drawn());
      for (int64_t g = 1; g <= w.columns / group; g++)
        for (int64_t i = 1; i <= 64; i += 2) at[g * (group * 8 + 64) - i] = uint8_t(0x34 | (i & 0x82));
    }
  }
  w.data = data.data();
  const Floats x = numbers(count * w.columns);
  std::vector<uint8_t> values(size_t(count * w.columns * 4));
  Floats scales(size_t(count * 8)), shifts(size_t(count * 8)), out(size_t(count * w.rows), 1.0f), row(size_t(w.columns));
  std::vector<int32_t> sums(size_t(count * 8));
  const Inputs inputs{kind, count, w.columns, group, rotated, values.data(), scales.data(), sums.data(), shifts.data()};
  k.prepare({x.data()}, inputs, 0, count);
  k.multiply({&w, &inputs, out.data(), true}, 0, w.blocks());
  std::vector<double> expected(out.size(), 1.0), stored;
  for (int64_t n = 0; n < w.rows; n++) {
    k.unpack_row(w, n, row.data());
    stored.insert(stored.end(), row.begin(), row.end());
    for (int64_t t = 0; t < count; t++)
      for (int64_t d = 0; d < w.columns; d++) expected[size_t(t * w.rows + n)] += double(row[size_t(d)]) * x[size_t(t * w.columns + d)];
  }
  char what[64];
  std::snprintf(what, sizeof what, "%s/%d%s, %d rows", names[int(kind)], int(group), rotated ? "r" : "", int(count));
  static const double allowed[] = {1e-6, 4e-3, 1e-2, 1e-2, 2e-2, 1e-2}, kept[] = {0, 4e-3, 1e-2, 0.11, 0, 0.1};
  judge(k, what, error_of(out, expected), allowed[int(kind)]);
  packed.resize(stored.size());
  if (kind != Kind::int4a) judge(k, "  as packed", error_of(packed, stored), kept[int(kind)]);
}

// 70 rows of 4 query heads over 2 key-value heads of 64.
static void check_attention(const Kernels& k, Kind kind, double allowed) {
  const int64_t count = 70, heads = 2, queries = 4, width = 64, bytes = kind == Kind::f32 ? 4 : kind == Kind::bf16 ? 2 : 1;
  const int64_t head_bytes = 2 * kPageKeys * width * bytes + (kind == Kind::int8 ? 2 * kPageKeys * 4 : 0);
  const PageLayout layout{kind, heads, width, 0, head_bytes, heads * head_bytes};
  std::vector<std::vector<uint8_t>> memory(2, std::vector<uint8_t>(size_t(layout.layer_bytes)));
  uint8_t* pages[] = {memory[0].data(), memory[1].data()};
  const Floats q = numbers(count * queries * width), key = numbers(count * heads * width), value = numbers(count * heads * width);
  for (int64_t t = 0; t < count; t++) k.store_keys(layout, pages, 0, t, key.data() + t * heads * width, value.data() + t * heads * width);
  Floats out(q.size());
  const AttentionRows rows{q.data(), out.data(), pages, 0, count, queries, 0, 0.125f};
  for (int64_t head = 0; head < heads; head++) k.attend(layout, rows, head, 0, count);
  std::vector<double> expected(out.size());
  for (int64_t t = 0; t < count; t++)
    for (int64_t h = 0; h < queries; h++) {
      std::vector<double> weights(size_t(t + 1));
      double total = 0;
      for (int64_t s = 0; s <= t; s++) {
        double score = 0;
        for (int64_t d = 0; d < width; d++) score += double(q[size_t((t * queries + h) * width + d)]) * key[size_t((s * heads + h / 2) * width + d)];
        total += weights[size_t(s)] = std::exp(score * 0.125);
      }
      for (int64_t s = 0; s <= t; s++)
        for (int64_t d = 0; d < width; d++)
          expected[size_t((t * queries + h) * width + d)] += weights[size_t(s)] / total * value[size_t((s * heads + h / 2) * width + d)];
    }
  const char* names[] = {"attention, f32", "attention, bf16", "attention, int8"};
  judge(k, names[int(kind)], error_of(out, expected), allowed);
}

int main() {
  std::vector<const Kernels*> variants{&kernels_portable};
#if defined(__x86_64__)
  variants.insert(variants.end(), {&kernels_avx2, &kernels_avx512});
#elif defined(__aarch64__)
  variants.push_back(&kernels_neon);
#endif
  for (const Kernels* k : variants) {
    drawn.seed(1);  // the same numbers for all
    for (const int64_t count : {1, 3, 9}) {
      for (const Kind kind : {Kind::f32, Kind::bf16}) check_product(*k, kind, 0, false, count);
      for (const Kind kind : {Kind::int8, Kind::int4, Kind::int4c})
        for (const int64_t group : {32, 64, 128}) check_product(*k, kind, group, group == 128, count);
      for (const int64_t group : {32, 64, 128}) check_product(*k, Kind::int4a, group, false, count);
    }
    check_attention(*k, Kind::f32, 1e-6), check_attention(*k, Kind::bf16, 4e-3), check_attention(*k, Kind::int8, 2e-2);
  }
  return failed;
}
