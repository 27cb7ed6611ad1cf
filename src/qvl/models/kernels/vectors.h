// What the kernels share: sixteen lanes as one value, bf16 and fp16 in and out, the 8-bit dot product.
//
// GCC's vector types turn into whatever the machine has (one AVX512 register, two AVX2 ones, four NEON ones).
// Intrinsics stand only where a single instruction does what the compiler would not find.

#pragma once

#include <cstdint>
#include <cstring>

#ifdef __x86_64__
#include <immintrin.h>
#endif

namespace qvl {

typedef float f32x16 __attribute__((vector_size(64)));
typedef float f32x4 __attribute__((vector_size(16)));
typedef float f32x8 __attribute__((vector_size(32)));
typedef int32_t i32x16 __attribute__((vector_size(64)));
typedef uint32_t u32x16 __attribute__((vector_size(64)));
typedef int32_t i32x8 __attribute__((vector_size(32)));
typedef uint32_t u32x8 __attribute__((vector_size(32)));
typedef int16_t i16x16 __attribute__((vector_size(32)));
typedef uint8_t u8x32 __attribute__((vector_size(32)));
typedef uint8_t u8x64 __attribute__((vector_size(64)));
typedef uint16_t u16x16 __attribute__((vector_size(32)));
typedef uint8_t u8x16 __attribute__((vector_size(16)));

// element types of tensors, as ops.py numbers them
enum Dtype { F32 = 0, BF16 = 1, F16 = 2 };

template <class V, class T> inline V load(const T *p) {
  V v;
  memcpy(&v, p, sizeof(V));
  return v;
}
template <class V, class T> inline void store(T *p, V v) { memcpy(p, &v, sizeof(V)); }

// x - 0 is x for every x, which x + 0 is not for -0: the compiler may drop it
inline f32x16 splat(float x) { return x - f32x16{}; }

inline f32x16 widened(u16x16 bits) {
  u32x16 wide = __builtin_convertvector(bits, u32x16) << 16;
  return (f32x16)wide;
}

// to the nearest, ties to even, as torch rounds; NaN stays NaN
inline u16x16 narrowed(f32x16 x) {
  u32x16 u = (u32x16)x;
  u32x16 rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
  u32x16 quiet = (u >> 16) | 0x40;
  i32x16 is_nan = (x != x);
  return __builtin_convertvector((u32x16)((rounded & ~(u32x16)is_nan) | (quiet & (u32x16)is_nan)), u16x16);
}

inline float to_float(uint16_t bits) {
  uint32_t u = uint32_t(bits) << 16;
  float x;
  memcpy(&x, &u, 4);
  return x;
}

inline uint16_t to_bf16(float x) {
  uint32_t u;
  memcpy(&u, &x, 4);
  if (x != x) return uint16_t(u >> 16 | 0x40);
  return uint16_t((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

inline float half_to_float(uint16_t bits) {
  _Float16 h;
  memcpy(&h, &bits, 2);
  return float(h);
}

inline f32x16 halves_widened(u16x16 bits) {
#if defined(__AVX512F__)
  return (f32x16)_mm512_cvtph_ps((__m256i)bits);
#elif defined(__F16C__)
  f32x16 x;
  __m256 parts[2];
  __m128i words[2];
  memcpy(words, &bits, 32);
  for (int h = 0; h < 2; h++) parts[h] = _mm256_cvtph_ps(words[h]);
  memcpy(&x, parts, 64);
  return x;
#else
  f32x16 x;
  for (int l = 0; l < 16; l++) x[l] = half_to_float(bits[l]);
  return x;
#endif
}

// one element and sixteen of them, whatever they are stored as
inline float get(const void *p, int dtype, int64_t i) {
  if (dtype == F32) return ((const float *)p)[i];
  const uint16_t bits = ((const uint16_t *)p)[i];
  return dtype == BF16 ? to_float(bits) : half_to_float(bits);
}

inline f32x16 get16(const void *p, int dtype, int64_t i) {
  if (dtype == F32) return load<f32x16>((const float *)p + i);
  const u16x16 bits = load<u16x16>((const uint16_t *)p + i);
  return dtype == BF16 ? widened(bits) : halves_widened(bits);
}

// F32 and BF16 are written only
inline void put(void *p, int dtype, int64_t i, float x) {
  if (dtype == F32)
    ((float *)p)[i] = x;
  else
    ((uint16_t *)p)[i] = to_bf16(x);
}

inline void put16(void *p, int dtype, int64_t i, f32x16 x) {
  if (dtype == F32)
    store((float *)p + i, x);
  else
    store((uint16_t *)p + i, narrowed(x));
}

// halves, then quarters … together: always in the same order
template <class Both> inline float folded(f32x8 x, Both both) {
  const f32x4 four = both(__builtin_shufflevector(x, x, 0, 1, 2, 3), __builtin_shufflevector(x, x, 4, 5, 6, 7));
  const f32x4 two = both(four, __builtin_shufflevector(four, four, 2, 3, 2, 3));
  return both(two, __builtin_shufflevector(two, two, 1, 1, 1, 1))[0];
}
template <class Both> inline float folded(f32x16 x, Both both) {
  return folded(both(__builtin_shufflevector(x, x, 0, 1, 2, 3, 4, 5, 6, 7),
                     __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15)),
                both);
}
template <class V> inline float sum(V x) {
  return folded(x, [](auto a, auto b) { return a + b; });
}
template <class V> inline float largest(V x) {
  return folded(x, [](auto a, auto b) { return a > b ? a : b; });
}

template <class V> inline V larger(V a, V b) { return a > b ? a : b; }
inline f32x16 absolute(f32x16 x) { return (f32x16)((u32x16)x & 0x7fffffffu); }

// a * b + c, rounded once where the machine can
inline f32x16 fused(f32x16 a, f32x16 b, f32x16 c) {
#if defined(__AVX512F__)
  return (f32x16)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  __m256 x[2], y[2], z[2];
  memcpy(x, &a, 64);
  memcpy(y, &b, 64);
  memcpy(z, &c, 64);
  for (int h = 0; h < 2; h++) z[h] = _mm256_fmadd_ps(x[h], y[h], z[h]);
  memcpy(&c, z, 64);
  return c;
#else
  return a * b + c;
#endif
}

inline f32x8 fused(f32x8 a, f32x8 b, f32x8 c) {
#if defined(__FMA__)
  return (f32x8)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}

// e^x within 2 units in the last place: x = n ln 2 + r, a polynomial for e^r, n into the exponent
template <class V> inline V exponential(V x) {
  typedef decltype(x == x) Ints; // of the same size
  const auto all = [](float c) { return c - V{}; };
  x = x > 88.0f ? all(88.0f) : x;
  x = x < -87.0f ? all(-87.0f) : x;
  const V shifted = x * 1.44269504f + 12582912.0f; // 1.5 * 2^23: adding it rounds to whole numbers
  const V n = shifted - 12582912.0f;
  const V r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  V p = fused(all(1.9875691500e-4f), r, all(1.3981999507e-3f));
  p = fused(p, r, all(8.3334519073e-3f));
  p = fused(p, r, all(4.1665795894e-2f));
  p = fused(p, r, all(1.6666665459e-1f));
  p = fused(p, r, all(5.0000001201e-1f));
  p = fused(p, r * r, r) + 1.0f;
  return (V)((Ints)p + ((Ints)shifted << 23));
}

// Where the processor multiplies bf16: two of them in each lane of a V.
#if defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#define QVL_BF16
template <class V> struct Pairs;
template <> struct Pairs<f32x16> {
  __m512bh bits;
  Pairs() = default;
  explicit Pairs(__m512i bits) : bits((__m512bh)bits) {}
  explicit Pairs(const void *p) : Pairs(_mm512_loadu_si512(p)) {}
  explicit Pairs(uint32_t pair) : Pairs(_mm512_set1_epi32(pair)) {}
};
template <> struct Pairs<f32x8> {
  __m256bh bits;
  Pairs() = default;
  explicit Pairs(const void *p) : bits((__m256bh)_mm256_loadu_si256((const __m256i *)p)) {}
  explicit Pairs(uint32_t pair) : bits((__m256bh)_mm256_set1_epi32(pair)) {}
};
// acc[l] += a[2l] * b[2l] + a[2l + 1] * b[2l + 1]
inline f32x16 dot(f32x16 acc, Pairs<f32x16> a, Pairs<f32x16> b) {
  return (f32x16)_mm512_dpbf16_ps((__m512)acc, a.bits, b.bits);
}
inline f32x8 dot(f32x8 acc, Pairs<f32x8> a, Pairs<f32x8> b) {
  return (f32x8)_mm256_dpbf16_ps((__m256)acc, a.bits, b.bits);
}
#endif

// A line of codes is multiplied in one vector, or in halves where registers hold half a line.
#if defined(__AVX2__) && !defined(__AVX512VNNI__)
constexpr int HALVES = 2;
typedef f32x8 Floats;
typedef i32x8 Ints;
typedef u8x32 Codes;
typedef i16x16 ShortInts;
#else
constexpr int HALVES = 1;
typedef f32x16 Floats;
typedef i32x16 Ints;
typedef u8x64 Codes;
#endif

// acc[l] += codes[4l] * x[0] + … + codes[4l + 3] * x[3], unsigned codes and signed x; exact in 32 bits
inline Ints dot4(Ints acc, Codes codes, int32_t x4) {
#if defined(__AVX512VNNI__)
  return (Ints)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)codes, _mm512_set1_epi32(x4));
#elif defined(__AVX2__)
  // pairs are summed in 16 bits, which 255 * 127 * 2 would overflow: the top bit of a code goes separately
  const __m256i x = _mm256_set1_epi32(x4), ones = _mm256_set1_epi16(1);
  const __m256i low = (__m256i)(codes & 0x7f), high = (__m256i)(codes & 0x80);
  const __m256i a = _mm256_madd_epi16(_mm256_maddubs_epi16(low, x), ones);
  const __m256i b = _mm256_madd_epi16(_mm256_maddubs_epi16(high, x), ones);
  return acc + (Ints)a + (Ints)b;
#else
  int8_t x[4];
  memcpy(x, &x4, 4);
  for (int l = 0; l < 16; l++)
    for (int j = 0; j < 4; j++) acc[l] += int32_t(codes[4 * l + j]) * x[j];
  return acc;
#endif
}
inline Ints total(Ints acc) { return acc; }

// Sums over the 32 inputs of a step. Those of 4-bit codes keep to 16 bits (16 products of at most 15 * 127), which
// saves AVX2 most of the work; others are summed in 32.
template <int BITS> struct StepSums { typedef Ints type; };
#if defined(__AVX2__) && !defined(__AVX512VNNI__)
inline ShortInts dot4(ShortInts acc, Codes codes, int32_t x4) {
  return acc + (ShortInts)_mm256_maddubs_epi16((__m256i)codes, _mm256_set1_epi32(x4));
}
inline Ints total(ShortInts acc) { return (Ints)_mm256_madd_epi16((__m256i)acc, _mm256_set1_epi16(1)); }
template <> struct StepSums<4> { typedef ShortInts type; };
#endif

} // namespace qvl
