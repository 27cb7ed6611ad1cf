// A few rows of bf16 activations x bf16 weights as they are published: (outputs, inputs), row by row.
//
// At few rows the weights are read once and used a few times, so the memory's speed is the limit; the loops keep
// several rows of weights in flight and never touch one twice. Sums are fp32, in the same order for every number
// of rows, so a row's result doesn't depend on its batch.

#include <algorithm>
#include <vector>

#include "vectors.h"

using namespace qvl;

namespace {

constexpr int64_t LINE = 32; // bf16 values in 64 bytes

struct Matrix {
  const uint16_t *weight; // (outputs, inputs)
  const uint16_t *bias;   // null or (outputs,)
  int64_t outputs;
};

#if defined(__AVX512BF16__) && defined(__AVX512BW__)
// 32 products, pairs summed into 16 lanes
struct Row {
  __m512bh bits;
};
inline Row line(const uint16_t *p) { return {(__m512bh)_mm512_loadu_si512(p)}; }
inline Row line(const uint16_t *p, int64_t count) {
  return {(__m512bh)_mm512_maskz_loadu_epi16((__mmask32)((1ull << count) - 1), p)};
}
inline f32x16 dot(f32x16 acc, Row a, Row b) { return (f32x16)_mm512_dpbf16_ps((__m512)acc, a.bits, b.bits); }
#else
struct Row {
  f32x16 even, odd;
};
inline Row line(const uint16_t *p) {
  const u32x16 pairs = load<u32x16>(p);
  return {(f32x16)(pairs << 16), (f32x16)(pairs & 0xffff0000u)};
}
inline Row line(const uint16_t *p, int64_t count) {
  uint16_t padded[LINE] = {};
  memcpy(padded, p, count * 2);
  return line(padded);
}
inline f32x16 dot(f32x16 acc, Row a, Row b) {
  return fused(a.odd, b.odd, fused(a.even, b.even, acc));
}
#endif

// MR rows of x times NR rows of weights
template <int MR, int NR>
void multiply(const Matrix &w, int64_t output, const uint16_t *x, int64_t inputs, uint16_t *y, int64_t width) {
  f32x16 acc[MR][NR];
  const uint16_t *weight = w.weight + output * inputs;
#pragma GCC unroll 8
  for (int m = 0; m < MR; m++)
#pragma GCC unroll 8
    for (int n = 0; n < NR; n++) acc[m][n] = f32x16{};
  const int64_t whole = inputs / LINE * LINE, rest = inputs - whole;
  for (int64_t i = 0; i < whole; i += LINE) {
    Row weights[NR];
#pragma GCC unroll 8
    for (int n = 0; n < NR; n++) weights[n] = line(weight + n * inputs + i);
#pragma GCC unroll 8
    for (int m = 0; m < MR; m++) {
      const Row values = line(x + m * inputs + i);
#pragma GCC unroll 8
      for (int n = 0; n < NR; n++) acc[m][n] = dot(acc[m][n], weights[n], values);
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < MR; m++)
#pragma GCC unroll 8
    for (int n = 0; n < NR; n++) {
      if (rest) acc[m][n] = dot(acc[m][n], line(weight + n * inputs + whole, rest), line(x + m * inputs + whole, rest));
      const float bias = w.bias ? to_float(w.bias[output + n]) : 0;
      y[m * width + output + n] = to_bf16(sum(acc[m][n]) + bias);
    }
}

template <int NR>
void rows_of(const Matrix &w, int64_t output, const uint16_t *x, int64_t rows, int64_t inputs, uint16_t *y,
             int64_t width) {
  constexpr int64_t MOST = NR == 4 ? 4 : 8;
  const int64_t pieces = (rows + MOST - 1) / MOST;
  for (int64_t p = 0, row = 0; p < pieces; p++) {
    const int64_t height = (rows - row + pieces - p - 1) / (pieces - p);
    const uint16_t *from = x + row * inputs;
    uint16_t *to = y + row * width;
#define QVL_ROWS(MR)                                                                                           \
  case MR:                                                                                                     \
    multiply<MR, NR>(w, output, from, inputs, to, width);                                                      \
    break;
    if constexpr (NR == 4) {
      switch (height) { QVL_ROWS(1) QVL_ROWS(2) QVL_ROWS(3) QVL_ROWS(4) }
    } else if constexpr (NR == 2) {
      switch (height) {
        QVL_ROWS(1) QVL_ROWS(2) QVL_ROWS(3) QVL_ROWS(4) QVL_ROWS(5) QVL_ROWS(6) QVL_ROWS(7) QVL_ROWS(8)
      }
    } else {
      for (int64_t m = 0; m < height; m++) multiply<1, NR>(w, output, from + m * inputs, inputs, to + m * width, width);
    }
#undef QVL_ROWS
    row += height;
  }
}

} // namespace

// y (T, sum of outputs) = x (T, inputs) times each of `count` matrices, side by side. All bf16.
extern "C" void qvl_bf16_linear(const Matrix *matrices, int64_t count, int64_t inputs, const uint16_t *x, int64_t rows,
                                uint16_t *y, int32_t num_threads) {
  constexpr int64_t ITEM = 16; // outputs handed to a thread at once
  struct Item {
    int64_t matrix, output, column;
  };
  std::vector<Item> items;
  int64_t width = 0;
  for (int64_t i = 0; i < count; i++) {
    for (int64_t o = 0; o < matrices[i].outputs; o += ITEM) items.push_back({i, o, width});
    width += matrices[i].outputs;
  }
#pragma omp parallel for schedule(dynamic, 4) num_threads(num_threads)
  for (size_t i = 0; i < items.size(); i++) {
    const Item &item = items[i];
    const Matrix &w = matrices[item.matrix];
    uint16_t *to = y + item.column;
    const int64_t end = std::min(w.outputs, item.output + ITEM);
    int64_t o = item.output;
    if (rows <= 4)
      for (; o + 4 <= end; o += 4) rows_of<4>(w, o, x, rows, inputs, to, width);
    for (; o + 2 <= end; o += 2) rows_of<2>(w, o, x, rows, inputs, to, width);
    for (; o < end; o++) rows_of<1>(w, o, x, rows, inputs, to, width);
  }
}
