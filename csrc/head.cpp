// A row of logits is cut into parts of kHeadColumns, whatever the number of threads: each is multiplied and scanned
// while it is in the cache, and the parts' sums are joined in order, so that a row's bits are its own. The likeliest
// are found by the parts' maxima: the k-th largest maximum is a logit that k others reach.
#include "head.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "machine.h"
#include "noise.h"

namespace fourbee {
namespace {

constexpr float kNothing = -std::numeric_limits<float>::infinity();
// Tokens that top_p alone looks at first; eight times more, then all, while their mass does not reach it.
constexpr int64_t kFirstCandidates = 256;

bool likelier(const LikelyToken& a, const LikelyToken& b) { return a.logit != b.logit ? a.logit > b.logit : a.id < b.id; }

// Logits of all rows with what was found out about their parts.
struct Logits {
  float* values;      // [rows, vocabulary]
  float* maxima;      // [rows, groups]
  LogitScan* scans;   // [rows, parts]
  double* sums;       // [rows, parts]: masses under a temperature
  NoisyToken* noisy;  // [rows, parts]
};

class Head {
 public:
  Head(const Matrix& matrix, int64_t rows, const HeadQuery& query, const HeadAnswer& answer)
      : matrix_(matrix), rows_(rows), vocabulary_(matrix.rows), parts_(divided(matrix.rows, kHeadColumns)),
        groups_(parts_ * (kHeadColumns / kMaximaColumns)), query_(query), answer_(answer), changed_(size_t(rows), query.bitmask != nullptr), peaks_(size_t(rows)) {
    for (int64_t i = 0; i < query.biases; i++) changed_[size_t(query.bias_rows[i])] = true;
    plain_ = space(machine().plain_logits);
    if (query.bitmask || query.biases) changed_logits_ = space(machine().changed_logits);
  }

  void run(const Inputs& inputs) {
    Pool& pool = *machine().pool;
    pool.run(parts_, [&](int64_t part) { multiply(inputs, part); });
    std::vector<int64_t> wide;  // rows that ask something of every part
    for (int64_t row = 0; row < rows_; row++) {
      summarise(row);
      if (samples(row) && !few(row)) wide.push_back(row);
    }
    pool.run(int64_t(wide.size()) * parts_, [&](int64_t task) { widen(wide[size_t(task / parts_)], task % parts_); });
    pool.run(rows_, [&](int64_t row) { answer(row); });
  }

 private:
  static int64_t divided(int64_t count, int64_t size) { return (count + size - 1) / size; }

  Logits space(LogitBuffers& of) {
    const size_t rows = size_t(rows_), parts = rows * size_t(parts_);
    of.values.resize(std::max(of.values.size(), rows * size_t(vocabulary_)));
    of.maxima.resize(std::max(of.maxima.size(), rows * size_t(groups_)));
    of.scans.resize(std::max(of.scans.size(), parts));
    of.sums.resize(std::max(of.sums.size(), parts));
    of.noisy.resize(std::max(of.noisy.size(), parts));
    return {of.values.data(), of.maxima.data(), of.scans.data(), of.sums.data(), of.noisy.data()};
  }

  int64_t columns(int64_t part) const { return std::min(kHeadColumns, vocabulary_ - part * kHeadColumns); }
  const Logits& logits(int64_t row) const { return changed_[size_t(row)] ? changed_logits_ : plain_; }
  const float* values(const Logits& of, int64_t row, int64_t part) const { return of.values + row * vocabulary_ + part * kHeadColumns; }

  void multiply(const Inputs& inputs, int64_t part) {
    const int64_t first = part * (kHeadColumns / kBlockRows);
    machine().kernels->multiply({&matrix_, &inputs, plain_.values, false}, first, std::min(matrix_.blocks(), first + kHeadColumns / kBlockRows));
    for (int64_t row = 0; row < rows_; row++) {
      scan(plain_, row, part);
      if (changed_[size_t(row)]) change(row, part), scan(changed_logits_, row, part);
    }
  }

  void scan(const Logits& of, int64_t row, int64_t part) {
    float* maxima = of.maxima + row * groups_ + part * (kHeadColumns / kMaximaColumns);
    std::fill_n(maxima, kHeadColumns / kMaximaColumns, kNothing);
    machine().kernels->scan_logits(values(of, row, part), columns(part), maxima, of.scans + row * parts_ + part);
  }

  // The part with bias and bitmask.
  void change(int64_t row, int64_t part) {
    const int64_t first = part * kHeadColumns, count = columns(part);
    float* out = changed_logits_.values + row * vocabulary_ + first;
    std::copy_n(values(plain_, row, part), count, out);
    const auto [begin, end] = std::equal_range(query_.bias_rows, query_.bias_rows + query_.biases, row);
    for (const int64_t* entry = begin; entry != end; entry++) {
      const int64_t i = entry - query_.bias_rows, at = query_.bias_ids[i] - first;
      if (at >= 0 && at < count) out[at] += query_.bias_values[i];
    }
    if (!query_.bitmask) return;
    const uint32_t* words = query_.bitmask + row * divided(vocabulary_, 32);
    for (int64_t i = 0; i < count; i++)
      if (!(words[(first + i) / 32] >> ((first + i) % 32) & 1)) out[i] = kNothing;
  }

  // Joins the parts: the largest logit, the sum of all and whether they are numbers.
  void summarise(int64_t row) {
    const LogitScan* scans = plain_.scans + row * parts_;
    const float peak = peak_of(plain_, row);
    peaks_[size_t(row)] = changed_[size_t(row)] ? peak_of(changed_logits_, row) : peak;
    bool finite = true;
    for (int64_t part = 0; part < parts_; part++) finite &= scans[part].finite;
    double weight = 0;
    for (int64_t part = 0; part < parts_; part++)
      if (scans[part].weight > 0) weight += double(scans[part].weight) * std::exp(double(scans[part].largest) - double(peak));
    const bool numbers = finite && peak > kNothing;
    answer_.finite[row] = numbers;
    answer_.logsumexp[row] = numbers ? float(double(peak) + std::log(weight)) : std::numeric_limits<float>::quiet_NaN();
  }

  float peak_of(const Logits& of, int64_t row) const {
    float most = kNothing;
    for (int64_t part = 0; part < parts_; part++) most = std::max(most, of.scans[row * parts_ + part].largest);
    return most;
  }

  bool samples(int64_t row) const { return !query_.targets && answer_.finite[row] && query_.temperature[row] > 0; }
  bool few(int64_t row) const { return query_.top_k[row] > 0 && query_.top_k[row] < vocabulary_; }
  uint64_t key(int64_t row) const { return noise_key(query_.seed[row], uint64_t(query_.position[row])); }

  // top_p needs the mass of everything, and plain sampling noise for everything.
  void widen(int64_t row, int64_t part) {
    const Logits& of = logits(row);
    const float most = peaks_[size_t(row)], temperature = query_.temperature[row];
    const float* x = values(of, row, part);
    if (query_.top_p[row] < 1) {
      of.sums[row * parts_ + part] = machine().kernels->scaled_mass(x, columns(part), most, temperature);
      return;
    }
    NoisyToken best{-std::numeric_limits<double>::infinity(), 0};
    if (most > kNothing)
      machine().kernels->sample_logits({most, temperature, query_.min_p[row], key(row)}, x, columns(part), part * kHeadColumns, &best);
    of.noisy[row * parts_ + part] = best;
  }

  void answer(int64_t row) {
    const bool numbers = answer_.finite[row];
    const int64_t token = query_.targets ? query_.targets[row] : !numbers ? 0 : query_.temperature[row] > 0 ? sampled(row) : likeliest(row);
    answer_.token_ids[row] = token;
    answer_.logprobs[row] = plain_.values[row * vocabulary_ + token] - answer_.logsumexp[row];
    if (!query_.num_top) return;
    std::vector<LikelyToken> top = numbers ? reaching(plain_, row, query_.num_top) : std::vector<LikelyToken>();
    fill_up(top, query_.num_top);
    std::partial_sort(top.begin(), top.begin() + query_.num_top, top.end(), likelier);
    for (int64_t i = 0; i < query_.num_top; i++) {
      answer_.top_ids[row * query_.num_top + i] = top[size_t(i)].id;
      answer_.top_logprobs[row * query_.num_top + i] = top[size_t(i)].logit - answer_.logsumexp[row];
    }
  }

  // Adds the lowest ids that are missing among tokens in the order of their ids, until there are `count`: those of -inf, or
  // where there are no numbers.
  static void fill_up(std::vector<LikelyToken>& tokens, int64_t count) {
    const size_t named = tokens.size();
    size_t next = 0;
    for (int32_t id = 0; int64_t(tokens.size()) < count; id++) {
      if (next < named && tokens[next].id == id) {
        next++;
      } else {
        tokens.push_back({kNothing, id});
      }
    }
  }

  int64_t likeliest(int64_t row) const {
    const std::vector<LikelyToken> first = reaching(logits(row), row, 1);
    return first.empty() ? 0 : std::min_element(first.begin(), first.end(), likelier)->id;
  }

  // At least the `count` likeliest tokens that have any probability, in the order of their ids.
  std::vector<LikelyToken> reaching(const Logits& of, int64_t row, int64_t count) const {
    const float* maxima = of.maxima + row * groups_;
    float least = kNothing;
    if (count <= groups_) {
      std::vector<float> order(maxima, maxima + groups_);
      std::nth_element(order.begin(), order.begin() + (count - 1), order.end(), std::greater<float>());
      least = order[size_t(count - 1)];
    }
    least = std::max(least, std::numeric_limits<float>::lowest());
    std::vector<LikelyToken> found;
    for (int64_t group = 0; group < groups_; group++) {
      const int64_t first = group * kMaximaColumns, columns = std::min(kMaximaColumns, vocabulary_ - first);
      if (maxima[group] < least || columns <= 0) continue;
      const size_t before = found.size();
      found.resize(before + size_t(columns));
      found.resize(before + size_t(machine().kernels->gather_logits(of.values + row * vocabulary_ + first, columns, least, first, &found[before])));
    }
    return found;
  }

  int64_t sampled(int64_t row) const {
    const Logits& of = logits(row);
    const float most = peaks_[size_t(row)], temperature = query_.temperature[row];
    const auto scaled = [&](const LikelyToken& one) { return (one.logit - most) / temperature; };
    const auto mass = [&](auto begin, auto end) {
      double sum = 0;
      for (; begin != end; ++begin) sum += std::exp(scaled(*begin));
      return sum;
    };
    NoisyToken best{-std::numeric_limits<double>::infinity(), 0};
    if (!few(row) && !(query_.top_p[row] < 1)) {
      for (int64_t part = 0; part < parts_; part++)
        if (of.noisy[row * parts_ + part].noisy > best.noisy) best = of.noisy[row * parts_ + part];
      return best.id;
    }
    std::vector<LikelyToken> kept;
    double all = 0;
    if (few(row)) {
      kept = reaching(of, row, query_.top_k[row]);
      const size_t count = std::min(kept.size(), size_t(query_.top_k[row]));
      std::nth_element(kept.begin(), kept.begin() + int64_t(count), kept.end(), likelier);
      kept.resize(count);
      all = mass(kept.begin(), kept.end());
    } else {
      for (int64_t part = 0; part < parts_; part++) all += of.sums[row * parts_ + part];
      for (int64_t count = kFirstCandidates;; count *= 8) {
        kept = reaching(of, row, count);
        if (count >= vocabulary_ || mass(kept.begin(), kept.end()) >= query_.top_p[row] * all) break;
      }
    }
    if (query_.top_p[row] < 1) keep_nucleus(kept, double(query_.top_p[row]) * all, mass);
    const uint64_t under = key(row);
    for (const LikelyToken& one : kept) {
      if (std::exp(scaled(one)) < query_.min_p[row]) continue;
      const double noisy = double(scaled(one)) + gumbel(noise_bits(under, uint64_t(one.id)));
      if (noisy > best.noisy) best = {noisy, one.id};
    }
    return best.id;
  }

  // The smallest set of likeliest tokens whose mass reaches `target`: never empty. Halves what is undecided each time.
  template <typename Mass>
  static void keep_nucleus(std::vector<LikelyToken>& tokens, double target, const Mass& mass) {
    auto begin = tokens.begin(), end = tokens.end();  // all before `begin` are kept, and so is *begin
    double before = 0;
    while (end - begin > 1) {
      const auto middle = begin + (end - begin) / 2;
      std::nth_element(begin, middle, end, likelier);
      const double more = mass(begin, middle);
      if (before + more >= target) {
        end = middle;
      } else {
        before += more, begin = middle;
      }
    }
    tokens.erase(end, tokens.end());
  }

  const Matrix& matrix_;
  const int64_t rows_, vocabulary_, parts_, groups_;
  const HeadQuery& query_;
  const HeadAnswer& answer_;
  std::vector<bool> changed_;  // rows with a bias or a bitmask
  std::vector<float> peaks_;   // each row's largest logit, changed or not
  Logits plain_{}, changed_logits_{};
};

}  // namespace

void head_rows(const Matrix& matrix, const float* hidden, int64_t rows, const HeadQuery& query, const HeadAnswer& answer) {
  Head(matrix, rows, query, answer).run(prepared({hidden}, rows, matrix));
}

}  // namespace fourbee
