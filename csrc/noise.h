// Counter-based Gumbel noise: a hash of (seed, position, token id) and nothing else. The same numbers as
// fourbee/kernels/numpy_sampling.py. In an unnamed namespace, as simd.h is, since every instruction set compiles it.
#pragma once
#include <cmath>
#include <cstdint>

namespace {

inline uint64_t splitmix64(uint64_t x) {  // Steele, Lea & Flood 2014
  x += 0x9E3779B97F4A7C15u;
  x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9u;
  x = (x ^ x >> 27) * 0x94D049BB133111EBu;
  return x ^ x >> 31;
}

inline uint64_t noise_key(uint64_t seed, uint64_t position) { return splitmix64(splitmix64(seed) + position); }

// 52 bits, so that adding a half is exact and the number is never 1, whose noise is infinite.
inline uint64_t noise_bits(uint64_t key, uint64_t token) { return splitmix64(key + token) >> 12; }

inline double gumbel(uint64_t bits) { return -std::log(-std::log((double(bits) + 0.5) * 0x1p-52)); }

// Never less than gumbel(bits), and no logarithm: -log(-log u) <= -log(1 - u), rounded up to a power of two.
inline double gumbel_bound(uint64_t bits) {
  return 0.6931471805599454 * double(__builtin_clzll((uint64_t(1) << 52) - bits) - 10);
}

// The most that any noise can be.
constexpr double kMostNoise = 36.8;

}  // namespace
