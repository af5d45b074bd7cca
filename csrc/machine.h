// What the binding's parts share: the checks of arguments, and the process's kernels and threads.
#pragma once
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "kernels.h"
#include "operations.h"
#include "pool.h"

namespace fourbee {

namespace nb = nanobind;

using Vector = nb::ndarray<float, nb::numpy, nb::shape<-1>, nb::c_contig, nb::device::cpu>;
using Rows = nb::ndarray<float, nb::numpy, nb::shape<-1, -1>, nb::c_contig, nb::device::cpu>;
using Heads = nb::ndarray<float, nb::numpy, nb::shape<-1, -1, -1>, nb::c_contig, nb::device::cpu>;
using InVector = nb::ndarray<const float, nb::numpy, nb::shape<-1>, nb::c_contig, nb::device::cpu>;
using InRows = nb::ndarray<const float, nb::numpy, nb::shape<-1, -1>, nb::c_contig, nb::device::cpu>;
using InHeads = nb::ndarray<const float, nb::numpy, nb::shape<-1, -1, -1>, nb::c_contig, nb::device::cpu>;
using Integers = nb::ndarray<const int64_t, nb::numpy, nb::shape<-1>, nb::c_contig, nb::device::cpu>;
using Bytes = nb::ndarray<const uint8_t, nb::numpy, nb::shape<-1, -1>, nb::c_contig, nb::device::cpu>;

inline void require(bool right, const std::string& message) {
  if (!right) throw std::invalid_argument(message);
}

inline void require_equal(const char* what, int64_t found, int64_t expected) {
  if (found != expected)
    throw std::invalid_argument(std::string(what) + " = " + std::to_string(found) + ": expected " + std::to_string(expected));
}

// The kernels in use; std::invalid_argument for a FOURBEE_ISA that this machine does not run.
std::vector<const Kernels*> supported();
const Kernels* chosen();
Kind kind_named(const std::string& name);
// Also int4a and int4c, which are for matrices alone.
Kind matrix_kind_named(const std::string& name);

// A mutex that adds up how long it was held, so that one can tell what a step spends outside the
// kernels: two looks at the clock, some 50 ns, an entry.
class TimedMutex {
 public:
  void lock() {
    mutex_.lock();
    since_ = std::chrono::steady_clock::now();
  }
  void unlock() {
    held_ += (std::chrono::steady_clock::now() - since_).count();
    mutex_.unlock();
  }
  double seconds() const { return double(held_) * std::chrono::steady_clock::period::num / std::chrono::steady_clock::period::den; }

 private:
  std::mutex mutex_;
  std::chrono::steady_clock::time_point since_;
  std::atomic<int64_t> held_{0};
};

// Memory of the head: logits and what is noted of their parts (head.cpp).
struct LogitBuffers {
  std::vector<float> values, maxima;
  std::vector<LogitScan> scans;
  std::vector<double> sums;
  std::vector<NoisyToken> noisy;
};

// The kernels, the threads and memory that is used over and over: what is allocated anew each time
// costs a page fault for every 4 KB.
struct Machine {
  const Kernels* kernels = chosen();
  std::unique_ptr<Pool> pool = std::make_unique<Pool>(int(std::max(1u, std::thread::hardware_concurrency())));
  TimedMutex busy;  // one operation at a time: they share the buffers
  std::vector<uint8_t> values;
  std::vector<float> scales, shifts, gate, up, adapted;
  std::vector<int32_t> sums;
  std::vector<Partial> partials;
  std::vector<float> partial_sums;
  LogitBuffers plain_logits, changed_logits;
  std::atomic<bool> abort{false};      // asked for: the plan under way, or the next one, ends early
  std::atomic<int64_t> heartbeat{0};   // steps of plans that were done: stands still when something hangs
};

Machine& machine();

// Ranges of [0, count) as tasks: several a thread, so that a slow one holds up little.
template <typename Work>
void share(int64_t count, int64_t least, Work work) {
  Pool& pool = *machine().pool;
  const int64_t wanted = int64_t(pool.threads()) * 4;
  const int64_t size = std::max(least, ((count + wanted - 1) / wanted + least - 1) / least * least);
  pool.run((count + size - 1) / size, [&](int64_t task) { work(task * size, std::min(count, (task + 1) * size)); });
}

// A packed matrix over bytes that Python owns.
class PackedWeights {
 public:
  PackedWeights(const std::string& kind, int64_t rows, int64_t columns, int64_t group, bool rotated, Bytes data)
      : data_(data), matrix_{matrix_kind_named(kind), rows, columns, group, 0, rotated, data.data()} {
    const bool grouped = is_grouped(matrix_.kind);
    require(rows > 0 && columns > 0 && rows < (1 << 30) && columns < (1 << 30), "rows and columns: expected from 1 to 2^30");
    require(grouped ? group == 32 || group == 64 || group == 128 : group == 0, "group: expected 32, 64 or 128 for whole numbers, else 0");
    require(!grouped || columns % group == 0, "columns: expected a multiple of the group");
    require(matrix_.kind != Kind::bf16 || columns % 2 == 0, "columns: expected an even number for bf16");
    require(!rotated || columns % 128 == 0, "columns: expected a multiple of 128 where rotated");
    static constexpr int64_t bits[] = {32, 16, 8, 4, 4, 4};
    matrix_.block_bytes = columns * kBlockRows * bits[int(matrix_.kind)] / 8 + (grouped ? columns / group * matrix_.scale_bytes() : 0) + matrix_.base_bytes();
    require_equal("blocks", int64_t(data.shape(0)), matrix_.blocks());
    require_equal("bytes of a block", int64_t(data.shape(1)), matrix_.block_bytes);
  }
  const Matrix& matrix() const { return matrix_; }

 private:
  Bytes data_;  // keeps the array alive
  Matrix matrix_;
};

// Sequence s has counts[s] rows, the first at position starts[s], and pages[page_offsets[s]] ..
// pages[page_offsets[s + 1] - 1]. std::invalid_argument where they do not fit each other or `rows`. With `some_dropped`,
// pages may be kDropped: null, for spans that leave them out.
constexpr int64_t kDropped = -1;
Sequences sequences_of(const KvPool& pool, int64_t rows, Integers counts, Integers starts, Integers page_offsets, Integers pages,
                       bool some_dropped = false);

inline void check_ids(const Integers& ids, const Matrix& table) {
  for (size_t i = 0; i < ids.shape(0); i++)
    require(ids(i) >= 0 && ids(i) < table.rows, "row " + std::to_string(ids(i)) + ": the matrix has " + std::to_string(table.rows));
}

inline void check_mlp(const Matrix& gate, const Matrix& up, const Matrix& down, int64_t columns) {
  require_equal("columns of gate", gate.columns, columns);
  require_equal("columns of up", up.columns, columns);
  require_equal("rows of up", up.rows, gate.rows);
  require_equal("columns of down", down.columns, gate.rows);
  require_equal("rows of down", down.rows, columns);
}

void bind_products(nb::module_& module);
void bind_attention(nb::module_& module);
void bind_head(nb::module_& module);
void bind_plan(nb::module_& module);
void bind_gradients(nb::module_& module);
void bind_peaks(nb::module_& module);

}  // namespace fourbee
