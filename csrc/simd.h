// Vectors of 16 lanes in four spellings: AVX-512, AVX2 (two halves), NEON with dot products (four quarters; proven
// in emulation, never timed) and plain C++.
// Kernels are written once over these; each translation unit picks one by its compiler flags.
// Everything is in an unnamed namespace: the variants must not be merged by the linker.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
#endif

namespace {

inline float half_to_float(uint16_t bits) {
  const uint32_t sign = uint32_t(bits & 0x8000) << 16, exponent = (bits >> 10) & 31, low = bits & 1023;
  uint32_t word;
  if (exponent == 31) {
    word = sign | 0x7f800000u | low << 13;
  } else if (exponent) {
    word = sign | (exponent + 112) << 23 | low << 13;
  } else {
    const float small = float(low) * 0x1p-24f;  // zero and the subnormal numbers
    std::memcpy(&word, &small, 4);
    word |= sign;
  }
  float value;
  std::memcpy(&value, &word, 4);
  return value;
}

inline uint16_t float_to_half(float value) {  // to nearest, ties to even; too large is infinite
  uint32_t word;
  std::memcpy(&word, &value, 4);
  const uint32_t sign = word >> 16 & 0x8000, size = word & 0x7fffffff;
  if (size > 0x7f800000) return uint16_t(sign | 0x7e00);
  if (size >= 0x477ff000) return uint16_t(sign | 0x7c00);
  if (size < 0x38800000) {  // subnormal: a whole number of 2^-24, rounded by the addition
    const float shifted = std::fabs(value) + 0.5f;
    uint32_t bits;
    std::memcpy(&bits, &shifted, 4);
    return uint16_t(sign | (bits - 0x3f000000));
  }
  return uint16_t(sign | ((size - 0x38000000 + 0xfff + (size >> 13 & 1)) >> 13));
}

inline uint16_t float_to_bf16(float value) {  // to nearest, ties to even
  uint32_t word;
  std::memcpy(&word, &value, 4);
  if ((word & 0x7fffffffu) > 0x7f800000u) return uint16_t(word >> 16 | 64);
  return uint16_t((word + 0x7fffu + (word >> 16 & 1)) >> 16);
}

inline float bf16_to_float(uint16_t bits) {
  const uint32_t word = uint32_t(bits) << 16;
  float value;
  std::memcpy(&value, &word, 4);
  return value;
}

inline int32_t four_bytes(const void* p) {
  int32_t value;
  std::memcpy(&value, p, 4);
  return value;
}

#if defined(__AVX512F__)

struct F { __m512 v; };   // 16 float32
struct I { __m512i v; };  // 16 int32
struct B { __m512i v; };  // 64 bytes

inline F zero() { return {_mm512_setzero_ps()}; }
inline F all(float x) { return {_mm512_set1_ps(x)}; }
inline F load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline void store(float* p, F x) { _mm512_storeu_ps(p, x.v); }
inline F add(F a, F b) { return {_mm512_add_ps(a.v, b.v)}; }
inline F sub(F a, F b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline F mul(F a, F b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline F div(F a, F b) { return {_mm512_div_ps(a.v, b.v)}; }
inline F fma(F a, F b, F c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline F max(F a, F b) { return {_mm512_max_ps(a.v, b.v)}; }
inline F min(F a, F b) { return {_mm512_min_ps(a.v, b.v)}; }
inline F abs(F a) { return {_mm512_abs_ps(a.v)}; }
// A bit for each lane of a that is less than b's; none where either is NaN.
inline uint32_t below(F a, F b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ); }
inline F round(F a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
inline F to_float(I a) { return {_mm512_cvtepi32_ps(a.v)}; }
inline I to_int(F a) { return {_mm512_cvtps_epi32(a.v)}; }
inline F times_power_of_2(F a, F n) { return {_mm512_scalef_ps(a.v, n.v)}; }
inline F load_f16(const uint16_t* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p))}; }
inline F load_bf16(const uint16_t* p) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16))};
}
inline F load_i8(const int8_t* p) { return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)p)))}; }
inline F load_u8(const uint8_t* p) { return {_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p)))}; }
inline void store_i8(int8_t* p, I x) { _mm_storeu_si128((__m128i*)p, _mm512_cvtepi32_epi8(x.v)); }
inline I all(int32_t x) { return {_mm512_set1_epi32(x)}; }
inline B load_bytes(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
inline B low_halves(B a) { return {_mm512_and_si512(a.v, _mm512_set1_epi8(15))}; }
inline B high_halves(B a) { return {_mm512_and_si512(_mm512_srli_epi16(a.v, 4), _mm512_set1_epi8(15))}; }
// acc[i] += sum of u[4i+j] * x[j]: unsigned weights, four signed inputs alike for every lane.
// Spelled in assembly, since gcc 12 copies each accumulator before the intrinsic, which costs an eighth of the speed.
inline I dot4(I acc, B u, int32_t x) {
  asm("vpdpbusd %2, %1, %0" : "+v"(acc.v) : "v"(u.v), "v"(_mm512_set1_epi32(x)));
  return acc;
}
inline I dot4_small(I acc, B u, int32_t x) { return dot4(acc, u, x); }
// acc[i] += w[2i] x[0] + w[2i+1] x[1] of bfloat16.
inline F dot2_bf16(F acc, B w, int32_t x) {
  return {_mm512_dpbf16_ps(acc.v, (__m512bh)w.v, (__m512bh)_mm512_set1_epi32(x))};
}
inline void prefetch(const void* p) { _mm_prefetch((const char*)p, _MM_HINT_T0); }
// Lane i gets lane i ^ H.
template <int H>
inline F exchange(F x) {
  if constexpr (H == 8) return {_mm512_shuffle_f32x4(x.v, x.v, 0x4e)};
  if constexpr (H == 4) return {_mm512_shuffle_f32x4(x.v, x.v, 0xb1)};
  if constexpr (H == 2) return {_mm512_permute_ps(x.v, 0x4e)};
  if constexpr (H == 1) return {_mm512_permute_ps(x.v, 0xb1)};
}

#elif defined(__AVX2__)

struct F { __m256 a, b; };
struct I { __m256i a, b; };
struct B { __m256i a, b; };

inline F zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline F all(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline F load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(float* p, F x) { _mm256_storeu_ps(p, x.a), _mm256_storeu_ps(p + 8, x.b); }
inline F add(F x, F y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
inline F sub(F x, F y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
inline F mul(F x, F y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
inline F div(F x, F y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
inline F fma(F x, F y, F z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
inline F max(F x, F y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
inline F min(F x, F y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
inline F abs(F x) {
  const __m256 mask = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
  return {_mm256_and_ps(x.a, mask), _mm256_and_ps(x.b, mask)};
}
inline uint32_t below(F x, F y) {
  return uint32_t(_mm256_movemask_ps(_mm256_cmp_ps(x.a, y.a, _CMP_LT_OQ))) |
         uint32_t(_mm256_movemask_ps(_mm256_cmp_ps(x.b, y.b, _CMP_LT_OQ))) << 8;
}
inline F round(F x) {
  constexpr int nearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(x.a, nearest), _mm256_round_ps(x.b, nearest)};
}
inline F to_float(I x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
inline I to_int(F x) { return {_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }
inline F times_power_of_2(F x, F n) {  // n within the exponents of normal numbers
  const I e = to_int(n);
  const __m256i bias = _mm256_set1_epi32(127);
  return mul(x, {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(e.a, bias), 23)),
                 _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(e.b, bias), 23))});
}
inline F load_f16(const uint16_t* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)), _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)(p + 8)))};
}
inline __m256 half_bf16(const uint16_t* p) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16));
}
inline F load_bf16(const uint16_t* p) { return {half_bf16(p), half_bf16(p + 8)}; }
inline __m256 half_i8(const int8_t* p) { return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)p))); }
inline F load_i8(const int8_t* p) { return {half_i8(p), half_i8(p + 8)}; }
inline __m256 half_u8(const uint8_t* p) { return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)p))); }
inline F load_u8(const uint8_t* p) { return {half_u8(p), half_u8(p + 8)}; }
inline void store_i8(int8_t* p, I x) {
  const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(x.a, x.b), 0xd8);
  _mm_storeu_si128((__m128i*)p, _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
}
inline I all(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
inline B load_bytes(const uint8_t* p) {
  return {_mm256_loadu_si256((const __m256i*)p), _mm256_loadu_si256((const __m256i*)(p + 32))};
}
inline B low_halves(B x) {
  const __m256i m = _mm256_set1_epi8(15);
  return {_mm256_and_si256(x.a, m), _mm256_and_si256(x.b, m)};
}
inline B high_halves(B x) {
  const __m256i m = _mm256_set1_epi8(15);
  return {_mm256_and_si256(_mm256_srli_epi16(x.a, 4), m), _mm256_and_si256(_mm256_srli_epi16(x.b, 4), m)};
}
// maddubs adds two products in 16 bits: of small weights (below 128) they always fit.
inline __m256i half_dot4_small(__m256i acc, __m256i u, __m256i x) {
  return _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(u, x), _mm256_set1_epi16(1)));
}
inline I dot4_small(I acc, B u, int32_t x) {
  const __m256i four = _mm256_set1_epi32(x);
  return {half_dot4_small(acc.a, u.a, four), half_dot4_small(acc.b, u.b, four)};
}
inline I dot4(I acc, B u, int32_t x) {  // one product in 16 bits: the even bytes, then the odd ones
  const __m256i four = _mm256_set1_epi32(x), even = _mm256_set1_epi16(0xff);
  acc.a = half_dot4_small(acc.a, _mm256_and_si256(u.a, even), four);
  acc.b = half_dot4_small(acc.b, _mm256_and_si256(u.b, even), four);
  acc.a = half_dot4_small(acc.a, _mm256_andnot_si256(even, u.a), four);
  acc.b = half_dot4_small(acc.b, _mm256_andnot_si256(even, u.b), four);
  return acc;
}
inline __m256 half_dot2_bf16(__m256 acc, __m256i w, int32_t x) {
  const __m256 first = _mm256_castsi256_ps(_mm256_slli_epi32(w, 16));
  const __m256 second = _mm256_castsi256_ps(_mm256_and_si256(w, _mm256_set1_epi32(int32_t(0xffff0000))));
  acc = _mm256_fmadd_ps(second, _mm256_set1_ps(bf16_to_float(uint16_t(uint32_t(x) >> 16))), acc);
  return _mm256_fmadd_ps(first, _mm256_set1_ps(bf16_to_float(uint16_t(x))), acc);
}
inline F dot2_bf16(F acc, B w, int32_t x) { return {half_dot2_bf16(acc.a, w.a, x), half_dot2_bf16(acc.b, w.b, x)}; }
inline void prefetch(const void* p) { _mm_prefetch((const char*)p, _MM_HINT_T0); }
template <int H>
inline F exchange(F x) {
  if constexpr (H == 8) return {x.b, x.a};
  if constexpr (H == 4) return {_mm256_permute2f128_ps(x.a, x.a, 1), _mm256_permute2f128_ps(x.b, x.b, 1)};
  if constexpr (H == 2) return {_mm256_permute_ps(x.a, 0x4e), _mm256_permute_ps(x.b, 0x4e)};
  if constexpr (H == 1) return {_mm256_permute_ps(x.a, 0xb1), _mm256_permute_ps(x.b, 0xb1)};
}

#elif defined(__ARM_FEATURE_DOTPROD)

struct F { float32x4_t v[4]; };
struct I { int32x4_t v[4]; };
struct B { uint8x16_t v[4]; };

#define QUARTERS for (int i = 0; i < 4; i++)
inline F all(float x) { F r; QUARTERS r.v[i] = vdupq_n_f32(x); return r; }
inline F zero() { return all(0.0f); }
inline F load(const float* p) { F r; QUARTERS r.v[i] = vld1q_f32(p + 4 * i); return r; }
inline void store(float* p, F x) { QUARTERS vst1q_f32(p + 4 * i, x.v[i]); }
inline F add(F a, F b) { QUARTERS a.v[i] = vaddq_f32(a.v[i], b.v[i]); return a; }
inline F sub(F a, F b) { QUARTERS a.v[i] = vsubq_f32(a.v[i], b.v[i]); return a; }
inline F mul(F a, F b) { QUARTERS a.v[i] = vmulq_f32(a.v[i], b.v[i]); return a; }
inline F div(F a, F b) { QUARTERS a.v[i] = vdivq_f32(a.v[i], b.v[i]); return a; }
inline F fma(F a, F b, F c) { QUARTERS c.v[i] = vfmaq_f32(c.v[i], a.v[i], b.v[i]); return c; }
// Of a NaN they give the second one, as on the other machines; NEON's own do not.
inline F max(F a, F b) { QUARTERS a.v[i] = vbslq_f32(vcgtq_f32(a.v[i], b.v[i]), a.v[i], b.v[i]); return a; }
inline F min(F a, F b) { QUARTERS a.v[i] = vbslq_f32(vcltq_f32(a.v[i], b.v[i]), a.v[i], b.v[i]); return a; }
inline F abs(F a) { QUARTERS a.v[i] = vabsq_f32(a.v[i]); return a; }
inline uint32_t below(F a, F b) {
  static constexpr uint32_t bits[4] = {1, 2, 4, 8};
  uint32_t r = 0;
  QUARTERS r |= vaddvq_u32(vandq_u32(vcltq_f32(a.v[i], b.v[i]), vld1q_u32(bits))) << 4 * i;
  return r;
}
inline F round(F a) { QUARTERS a.v[i] = vrndnq_f32(a.v[i]); return a; }
inline F to_float(I a) { F r; QUARTERS r.v[i] = vcvtq_f32_s32(a.v[i]); return r; }
inline I to_int(F a) { I r; QUARTERS r.v[i] = vcvtnq_s32_f32(a.v[i]); return r; }
inline F times_power_of_2(F a, F n) {  // n within the exponents of normal numbers
  const I e = to_int(n);
  QUARTERS a.v[i] = vmulq_f32(a.v[i], vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(e.v[i], vdupq_n_s32(127)), 23)));
  return a;
}
inline F load_f16(const uint16_t* p) {
  F r;
  QUARTERS r.v[i] = vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + 4 * i)));
  return r;
}
inline F load_bf16(const uint16_t* p) {
  F r;
  QUARTERS r.v[i] = vreinterpretq_f32_u32(vshlq_n_u32(vmovl_u16(vld1_u16(p + 4 * i)), 16));
  return r;
}
inline F load_i8(const int8_t* p) {
  const int8x16_t bytes = vld1q_s8(p);
  const int16x8_t low = vmovl_s8(vget_low_s8(bytes)), high = vmovl_high_s8(bytes);
  return to_float({{vmovl_s16(vget_low_s16(low)), vmovl_high_s16(low), vmovl_s16(vget_low_s16(high)), vmovl_high_s16(high)}});
}
inline F load_u8(const uint8_t* p) {
  const uint8x16_t bytes = vld1q_u8(p);
  const uint16x8_t low = vmovl_u8(vget_low_u8(bytes)), high = vmovl_high_u8(bytes);
  const uint32x4_t words[] = {vmovl_u16(vget_low_u16(low)), vmovl_high_u16(low), vmovl_u16(vget_low_u16(high)), vmovl_high_u16(high)};
  F r;
  QUARTERS r.v[i] = vcvtq_f32_u32(words[i]);
  return r;
}
inline void store_i8(int8_t* p, I x) {
  const int16x8_t low = vcombine_s16(vmovn_s32(x.v[0]), vmovn_s32(x.v[1])), high = vcombine_s16(vmovn_s32(x.v[2]), vmovn_s32(x.v[3]));
  vst1q_s8(p, vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
}
inline I all(int32_t x) { I r; QUARTERS r.v[i] = vdupq_n_s32(x); return r; }
inline B load_bytes(const uint8_t* p) { B r; QUARTERS r.v[i] = vld1q_u8(p + 16 * i); return r; }
inline B low_halves(B a) { QUARTERS a.v[i] = vandq_u8(a.v[i], vdupq_n_u8(15)); return a; }
inline B high_halves(B a) { QUARTERS a.v[i] = vshrq_n_u8(a.v[i], 4); return a; }
// The instruction takes signed numbers: small weights (below 128) are that.
inline I dot4_small(I acc, B u, int32_t x) {
  const int8x16_t four = vreinterpretq_s8_s32(vdupq_n_s32(x));
  QUARTERS acc.v[i] = vdotq_s32(acc.v[i], vreinterpretq_s8_u8(u.v[i]), four);
  return acc;
}
inline I dot4(I acc, B u, int32_t x) {  // of the weights less 128; and 128 times the inputs
  const int8x16_t four = vreinterpretq_s8_s32(vdupq_n_s32(x));
  const int32x4_t less = vdotq_s32(vdupq_n_s32(0), vdupq_n_s8(-128), four);
  QUARTERS acc.v[i] = vdotq_s32(vsubq_s32(acc.v[i], less), vreinterpretq_s8_u8(veorq_u8(u.v[i], vdupq_n_u8(128))), four);
  return acc;
}
inline F dot2_bf16(F acc, B w, int32_t x) {
  const float32x4_t one = vdupq_n_f32(bf16_to_float(uint16_t(x))), two = vdupq_n_f32(bf16_to_float(uint16_t(uint32_t(x) >> 16)));
  QUARTERS {
    const uint32x4_t words = vreinterpretq_u32_u8(w.v[i]);
    acc.v[i] = vfmaq_f32(acc.v[i], vreinterpretq_f32_u32(vandq_u32(words, vdupq_n_u32(0xffff0000))), two);
    acc.v[i] = vfmaq_f32(acc.v[i], vreinterpretq_f32_u32(vshlq_n_u32(words, 16)), one);
  }
  return acc;
}
inline void prefetch(const void* p) { __builtin_prefetch(p); }
template <int H>
inline F exchange(F x) {
  if constexpr (H >= 4) return {{x.v[H / 4], x.v[1 ^ H / 4], x.v[2 ^ H / 4], x.v[3 ^ H / 4]}};
  QUARTERS x.v[i] = H == 2 ? vextq_f32(x.v[i], x.v[i], 2) : vrev64q_f32(x.v[i]);
  return x;
}
#undef QUARTERS

#else

struct F { float v[16]; };
struct I { int32_t v[16]; };
struct B { uint8_t v[64]; };

#define LANES for (int i = 0; i < 16; i++)
inline F all(float x) { F r; LANES r.v[i] = x; return r; }
inline F zero() { return all(0.0f); }
inline F load(const float* p) { F r; LANES r.v[i] = p[i]; return r; }
inline void store(float* p, F x) { LANES p[i] = x.v[i]; }
inline F add(F a, F b) { LANES a.v[i] += b.v[i]; return a; }
inline F sub(F a, F b) { LANES a.v[i] -= b.v[i]; return a; }
inline F mul(F a, F b) { LANES a.v[i] *= b.v[i]; return a; }
inline F div(F a, F b) { LANES a.v[i] /= b.v[i]; return a; }
inline F fma(F a, F b, F c) { LANES c.v[i] += a.v[i] * b.v[i]; return c; }
inline F max(F a, F b) { LANES a.v[i] = a.v[i] > b.v[i] ? a.v[i] : b.v[i]; return a; }
inline F min(F a, F b) { LANES a.v[i] = a.v[i] < b.v[i] ? a.v[i] : b.v[i]; return a; }
inline F abs(F a) { LANES a.v[i] = std::fabs(a.v[i]); return a; }
inline uint32_t below(F a, F b) { uint32_t r = 0; LANES r |= uint32_t(a.v[i] < b.v[i]) << i; return r; }
inline F round(F a) { LANES a.v[i] = std::nearbyintf(a.v[i]); return a; }
inline F to_float(I a) { F r; LANES r.v[i] = float(a.v[i]); return r; }
inline I to_int(F a) { I r; LANES r.v[i] = int32_t(std::nearbyintf(a.v[i])); return r; }
inline F times_power_of_2(F a, F n) { LANES a.v[i] = std::ldexp(a.v[i], int(n.v[i])); return a; }
inline F load_f16(const uint16_t* p) { F r; LANES r.v[i] = half_to_float(p[i]); return r; }
inline F load_bf16(const uint16_t* p) { F r; LANES r.v[i] = bf16_to_float(p[i]); return r; }
inline F load_i8(const int8_t* p) { F r; LANES r.v[i] = float(p[i]); return r; }
inline F load_u8(const uint8_t* p) { F r; LANES r.v[i] = float(p[i]); return r; }
inline void store_i8(int8_t* p, I x) { LANES p[i] = int8_t(x.v[i]); }
inline I all(int32_t x) { I r; LANES r.v[i] = x; return r; }
inline B load_bytes(const uint8_t* p) { B r; std::memcpy(r.v, p, 64); return r; }
inline B low_halves(B a) { for (int i = 0; i < 64; i++) a.v[i] &= 15; return a; }
inline B high_halves(B a) { for (int i = 0; i < 64; i++) a.v[i] >>= 4; return a; }
inline I dot4(I acc, B u, int32_t x) {
  int8_t four[4];
  std::memcpy(four, &x, 4);
  LANES for (int j = 0; j < 4; j++) acc.v[i] += int32_t(u.v[4 * i + j]) * four[j];
  return acc;
}
inline I dot4_small(I acc, B u, int32_t x) { return dot4(acc, u, x); }
inline F dot2_bf16(F acc, B w, int32_t x) {
  uint16_t pairs[32], two[2];
  std::memcpy(pairs, w.v, 64), std::memcpy(two, &x, 4);
  const float first = bf16_to_float(two[0]), second = bf16_to_float(two[1]);
  LANES acc.v[i] += bf16_to_float(pairs[2 * i + 1]) * second;
  LANES acc.v[i] += bf16_to_float(pairs[2 * i]) * first;
  return acc;
}
inline void prefetch(const void*) {}
template <int H>
inline F exchange(F x) { F r; LANES r.v[i] = x.v[i ^ H]; return r; }
#undef LANES

#endif

// Sums of pairs of lanes, 8 apart, then 4, 2 and 1: the same bits in every spelling. Of maxima any order does.
#if defined(__AVX512F__) || defined(__AVX2__)
#if defined(__AVX512F__)
inline __m256 low_lanes(F x) { return _mm512_castps512_ps256(x.v); }
inline __m256 high_lanes(F x) { return _mm512_extractf32x8_ps(x.v, 1); }
#else
inline __m256 low_lanes(F x) { return x.a; }
inline __m256 high_lanes(F x) { return x.b; }
#endif
inline float sum(F x) {
  const __m256 eight = _mm256_add_ps(low_lanes(x), high_lanes(x));
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
inline float largest(F x) {
  const __m256 eight = _mm256_max_ps(low_lanes(x), high_lanes(x));
  const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
#elif defined(__ARM_FEATURE_DOTPROD)
inline float sum(F x) {
  const float32x4_t four = vaddq_f32(vaddq_f32(x.v[0], x.v[2]), vaddq_f32(x.v[1], x.v[3]));
  const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
  return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
}
inline float largest(F x) {
  const F eight = max(x, exchange<8>(x)), four = max(eight, exchange<4>(eight));
  const F two = max(four, exchange<2>(four));
  return vgetq_lane_f32(max(two, exchange<1>(two)).v[0], 0);
}
#else
inline float sum(F x) {
  for (int half = 8; half; half /= 2)
    for (int i = 0; i < half; i++) x.v[i] += x.v[i + half];
  return x.v[0];
}
inline float largest(F x) {
  for (int half = 8; half; half /= 2)
    for (int i = 0; i < half; i++) x.v[i] = x.v[i] > x.v[i + half] ? x.v[i] : x.v[i + half];
  return x.v[0];
}
#endif

// The one exponential: Cephes' expf, within 2 units in the last place, of x within +-87 or so.
// The order of arguments keeps NaN: max and min give their second one then.
inline F exp(F x) {
  const F clamped = min(all(88.0f), max(all(-87.0f), x));
  const F n = round(mul(clamped, all(1.44269504088896341f)));
  F r = fma(n, all(-0.693359375f), clamped);
  r = fma(n, all(2.12194440e-4f), r);
  F p = all(1.9875691500e-4f);
  p = fma(p, r, all(1.3981999507e-3f));
  p = fma(p, r, all(8.3334519073e-3f));
  p = fma(p, r, all(4.1665795894e-2f));
  p = fma(p, r, all(1.6666665459e-1f));
  p = fma(p, r, all(5.0000001201e-1f));
  p = add(fma(p, mul(r, r), r), all(1.0f));
  return times_power_of_2(p, n);
}

inline float exp(float x) {
  float lanes[16];
  store(lanes, exp(all(x)));
  return lanes[0];
}

}  // namespace
