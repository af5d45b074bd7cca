// fourbee.kernels._native: what Python sees of the kernels. Every entry checks its shapes and
// integers before it touches memory, and lets go of the interpreter's lock while it computes.
#include <cstdlib>
#include <cstring>
#include <thread>

#include "machine.h"

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace fourbee {

std::vector<const Kernels*> supported() {
  std::vector<const Kernels*> found{&kernels_portable};
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
    found.push_back(&kernels_avx2);
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16"))
    found.push_back(&kernels_avx512);
#elif defined(__aarch64__) && defined(__linux__)
  constexpr unsigned long dot_products = 1ul << 20;  // HWCAP_ASIMDDP
  if (getauxval(AT_HWCAP) & dot_products) found.push_back(&kernels_neon);
#elif defined(__aarch64__) && defined(__APPLE__)
  found.push_back(&kernels_neon);  // every one of them has dot products
#endif
  return found;
}

const Kernels* chosen() {
  const auto found = supported();
  const char* forced = std::getenv("FOURBEE_ISA");
  if (!forced || !*forced) return found.back();
  std::string names;
  for (const Kernels* one : found) {
    if (std::strcmp(one->name, forced) == 0) return one;
    names += (names.empty() ? "" : ", ") + std::string(one->name);
  }
  throw std::invalid_argument("FOURBEE_ISA = '" + std::string(forced) + "': this machine runs " + names);
}

Machine& machine() {
  static Machine one;
  return one;
}

Kind kind_named(const std::string& name) {
  if (name == "f32") return Kind::f32;
  if (name == "bf16") return Kind::bf16;
  if (name == "int8") return Kind::int8;
  if (name == "int4") return Kind::int4;
  throw std::invalid_argument("kind = '" + name + "': expected one of f32, bf16, int8, int4");
}

Kind matrix_kind_named(const std::string& name) {
  return name == "int4a" ? Kind::int4a : name == "int4c" ? Kind::int4c : kind_named(name);
}

}  // namespace fourbee

using namespace fourbee;

NB_MODULE(_native, module) {
  module.def("isa", [] { return machine().kernels->name; }, "The instruction set in use: portable, avx2, avx512 or neon.");
  module.def("isas", [] {
    std::vector<std::string> names;
    for (const Kernels* one : supported()) names.push_back(one->name);
    return names;
  }, "The instruction sets that this machine runs.");
  module.def("threads", [] { return machine().pool->threads(); });
  module.def("set_threads", [](int threads) {
    require(threads >= 1 && threads <= 1024, "threads = " + std::to_string(threads) + ": expected from 1 to 1024");
    Machine& m = machine();
    nb::gil_scoped_release release;
    std::lock_guard lock(m.busy);
    m.pool.reset();
    m.pool = std::make_unique<Pool>(threads);
  }, nb::arg("threads"));

  bind_products(module);
  bind_attention(module);
  bind_head(module);
  bind_plan(module);
  bind_gradients(module);
  bind_peaks(module);
}
