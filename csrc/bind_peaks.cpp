// What this machine can do at most, and how long the kernels have worked, as Python asks it.
#include <chrono>

#include "machine.h"

namespace fourbee {
namespace {

template <typename Work>
double seconds_of(Work work) {
  const auto started = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count();
}

// Multiply-adds a second of all threads, each `turns` turns of `products` products.
double peak(int32_t (*spin)(int64_t), int64_t turns, int64_t products) {
  require(turns > 0 && turns <= int64_t(1) << 40, "turns: expected from 1 to 2^40");
  nb::gil_scoped_release release;
  Machine& m = machine();
  std::lock_guard lock(m.busy);
  std::atomic<int32_t> kept{0};
  const int threads = m.pool->threads();
  const double seconds = seconds_of([&] { m.pool->run(threads, [&](int64_t) { kept += spin(turns); }); });
  return double(threads) * double(turns) * double(products) / seconds;
}

// Bytes a second that all threads read together.
double read_bandwidth(nb::ndarray<const uint8_t, nb::numpy, nb::shape<-1>, nb::c_contig, nb::device::cpu> data) {
  nb::gil_scoped_release release;
  Machine& m = machine();
  std::lock_guard lock(m.busy);
  std::atomic<int32_t> kept{0};
  const int64_t threads = m.pool->threads(), part = int64_t(data.shape(0)) / threads / 256 * 256;
  require(part > 0, "data: expected at least 256 bytes a thread");
  const double seconds = seconds_of([&] {
    m.pool->run(threads, [&](int64_t i) { kept += m.kernels->read_bytes(data.data() + i * part, part); });
  });
  return double(threads * part) / seconds;
}

}  // namespace

void bind_peaks(nb::module_& module) {
  module.def("peak_int8", [](int64_t turns) { return peak(machine().kernels->spin_int8, turns, 16 * 64); }, nb::arg("turns"));
  module.def("peak_bf16", [](int64_t turns) { return peak(machine().kernels->spin_bf16, turns, 16 * 32); }, nb::arg("turns"));
  module.def("read_bandwidth", &read_bandwidth, nb::arg("data"));
  module.def("busy_seconds", [] { return machine().busy.seconds(); }, "Time inside the entries that compute, since the process began.");
}

}  // namespace fourbee
