// One row of the work between the matrix products: norm, gated activation, rotation.
//
// Each does in one pass what PyTorch does in several, with the same roundings between the steps. Pointers are to whole
// tensors and `from`, `to` count elements, so that one dtype argument serves.

#pragma once

#include <algorithm>
#include <cmath>

#include "vectors.h"

namespace qvl {

inline float rounded(float x, int dtype) { return dtype == F32 ? x : to_float(to_bf16(x)); }
inline f32x16 rounded(f32x16 x, int dtype) { return dtype == F32 ? x : widened(narrowed(x)); }

// The sum of squares in the order in which PyTorch's mean adds (SumKernel.cpp: eight lanes, four vectors at a time,
// partial sums by levels), so that a norm rounds as the reference's does, to the last bit.
inline float sum_of_squares(const void *x, int dtype, int64_t from, int64_t size) {
  struct Four {
    f32x16 low, high;
  } acc[4] = {};
  const auto squares = [&](int64_t i) {
    const f32x16 v = get16(x, dtype, from + i);
    return v * v;
  };
  const int64_t vectors = size / 8, steps = vectors / 4;
  int64_t log = 0;
  while (int64_t(1) << log < steps) log++;
  const int64_t power = std::max<int64_t>(4, log / 4), step = int64_t(1) << power, mask = step - 1;
  int64_t i = 0;
  const auto add = [&] {
    acc[0].low += squares(32 * i);
    acc[0].high += squares(32 * i + 16);
    i++;
  };
  while (i + step <= steps) {
    for (int64_t j = 0; j < step; j++) add();
    for (int64_t j = 1; j < 4; j++) {
      acc[j].low += acc[j - 1].low;
      acc[j].high += acc[j - 1].high;
      acc[j - 1] = Four{};
      if (i & (mask << (j * power))) break;
    }
  }
  while (i < steps) add();
  for (int j = 1; j < 4; j++) {
    acc[0].low += acc[j].low;
    acc[0].high += acc[j].high;
  }
  f32x8 parts[4];
  memcpy(parts, &acc[0], sizeof parts);
  for (int64_t v = steps * 4; v < vectors; v++)
    for (int l = 0; l < 8; l++) {
      const float value = get(x, dtype, from + v * 8 + l);
      parts[0][l] += value * value;
    }
  for (int k = 1; k < 4; k++) parts[0] += parts[k];
  float total = 0;
  for (int64_t j = vectors * 8; j < size; j++) {
    const float value = get(x, dtype, from + j);
    total += value * value;
  }
  for (int l = 0; l < 8; l++) total += parts[0][l];
  return total;
}

// y = weight * round(x / sqrt(mean(x²) + eps))
inline void norm_row(const void *x, int64_t from, const void *weight, void *y, int64_t to, int64_t size, float eps,
                     int dtype) {
  const int64_t whole = size / 16 * 16;
  const float total = sum_of_squares(x, dtype, from, size);
  const float factor = 1 / sqrtf(total / float(size) + eps);
  for (int64_t i = 0; i < whole; i += 16)
    put16(y, dtype, to + i, get16(weight, dtype, i) * rounded(get16(x, dtype, from + i) * splat(factor), dtype));
  for (int64_t i = whole; i < size; i++)
    put(y, dtype, to + i, get(weight, dtype, i) * rounded(get(x, dtype, from + i) * factor, dtype));
}

// y = silu(gate) * up
inline void silu_mul_row(const void *gate, const void *up, int64_t from, void *y, int64_t to, int64_t size,
                         int dtype) {
  int64_t i = 0;
  for (; i + 16 <= size; i += 16) {
    const f32x16 g = get16(gate, dtype, from + i);
    const f32x16 activated = g / (1.0f + exponential(-g));
    put16(y, dtype, to + i, rounded(activated, dtype) * get16(up, dtype, from + i));
  }
  for (; i < size; i++) {
    const float g = get(gate, dtype, from + i);
    const float activated = g / (1 + exponential(splat(-g))[0]);
    put(y, dtype, to + i, rounded(activated, dtype) * get(up, dtype, from + i));
  }
}

// One head rotated: y = x * cos + half(x) * sin, where half(x) is (-x2, x1) of the two halves. Products are rounded to
// the dtype of the tables before they are added, as PyTorch does when it computes in bf16.
inline void rope_head(const void *x, int64_t from, const void *cos, const void *sin, int64_t table, int table_dtype,
                      void *y, int64_t to, int64_t size, int dtype) {
  const int64_t half = size / 2;
  int64_t i = 0;
  for (; i + 16 <= half; i += 16) {
    const f32x16 a = get16(x, dtype, from + i), b = get16(x, dtype, from + half + i);
    const f32x16 c1 = get16(cos, table_dtype, table + i), c2 = get16(cos, table_dtype, table + half + i);
    const f32x16 s1 = get16(sin, table_dtype, table + i), s2 = get16(sin, table_dtype, table + half + i);
    put16(y, dtype, to + i, rounded(a * c1, table_dtype) + rounded(-b * s1, table_dtype));
    put16(y, dtype, to + half + i, rounded(b * c2, table_dtype) + rounded(a * s2, table_dtype));
  }
  for (; i < half; i++) {
    const float a = get(x, dtype, from + i), b = get(x, dtype, from + half + i);
    const float c1 = get(cos, table_dtype, table + i), c2 = get(cos, table_dtype, table + half + i);
    const float s1 = get(sin, table_dtype, table + i), s2 = get(sin, table_dtype, table + half + i);
    put(y, dtype, to + i, rounded(a * c1, table_dtype) + rounded(-b * s1, table_dtype));
    put(y, dtype, to + half + i, rounded(b * c2, table_dtype) + rounded(a * s2, table_dtype));
  }
}

} // namespace qvl
