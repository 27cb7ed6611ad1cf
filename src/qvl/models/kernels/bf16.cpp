// A few rows of bf16 activations x bf16 weights as they are published: (outputs, inputs), row by row.
//
// At few rows the weights are read once and used a few times, so the memory's speed is the limit; the loops keep
// several rows of weights in flight. Sums are fp32, in the same order for every number of rows, so a row's result doesn't
// depend on its batch.

#include "matrix.h"

using namespace qvl;

namespace {

#ifdef QVL_BF16
// 32 products, pairs summed into 16 lanes
constexpr int64_t LINE = 32;
typedef f32x16 Sums;
typedef qvl::Pairs<Sums> Row;
inline Row line(const uint16_t *p) { return Row(p); }
inline Row line(const uint16_t *p, int64_t count) {
  return Row(_mm512_maskz_loadu_epi16((__mmask32)((1ull << count) - 1), p));
}
#else
#if defined(__AVX512F__)
constexpr int64_t LINE = 32;
typedef f32x16 Sums;
typedef u32x16 Pairs;
#else // registers of half the size: with whole ones a tile's sums would not all have a register
constexpr int64_t LINE = 16;
typedef f32x8 Sums;
typedef u32x8 Pairs;
#endif
struct Row {
  Sums even, odd;
};
inline Row line(const uint16_t *p) {
  const Pairs pairs = load<Pairs>(p);
  return {(Sums)(pairs << 16), (Sums)(pairs & 0xffff0000u)};
}
inline Row line(const uint16_t *p, int64_t count) {
  uint16_t padded[LINE] = {};
  memcpy(padded, p, count * 2);
  return line(padded);
}
inline Sums dot(Sums acc, Row a, Row b) { return fused(a.odd, b.odd, fused(a.even, b.even, acc)); }
#endif
// rows of x for 4 and for 2 rows of weights: their sums, MOST * NR, and the operands have to fit the registers
#if defined(__AVX512F__)
constexpr int64_t MOST_FOR_4 = 4, MOST = 8, FOUR_UP_TO = 4;
// Where x has at most so many values, one row of weights after the other: short rows side by side are streams too short
// for the processor to read ahead in. Measured on AVX512 only (2048 inputs: 29 GB/s instead of 19).
constexpr int64_t ALONE_UP_TO = 8192;
#else
constexpr int64_t MOST_FOR_4 = 2, MOST = 4, FOUR_UP_TO = 1 << 20;
constexpr int64_t ALONE_UP_TO = 0;
#endif

// MR rows of x times NR rows of weights
template <int MR, int NR>
void multiply(const Matrix &w, int64_t output, const uint16_t *x, int64_t inputs, uint16_t *y, int64_t width) {
  Sums acc[MR][NR];
  const uint16_t *weight = (const uint16_t *)w.weight + output * inputs;
#pragma GCC unroll 8
  for (int m = 0; m < MR; m++)
#pragma GCC unroll 8
    for (int n = 0; n < NR; n++) acc[m][n] = Sums{};
  const int64_t whole = inputs / LINE * LINE, rest = inputs - whole;
  for (int64_t i = 0; i < whole; i += LINE) {
    Row values[MR];
#pragma GCC unroll 8
    for (int m = 0; m < MR; m++) values[m] = line(x + m * inputs + i);
#pragma GCC unroll 8
    for (int n = 0; n < NR; n++) {
      const Row weights = line(weight + n * inputs + i);
#pragma GCC unroll 8
      for (int m = 0; m < MR; m++) acc[m][n] = dot(acc[m][n], weights, values[m]);
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < MR; m++)
#pragma GCC unroll 8
    for (int n = 0; n < NR; n++) {
      if (rest) acc[m][n] = dot(acc[m][n], line(weight + n * inputs + whole, rest), line(x + m * inputs + whole, rest));
      const float bias = w.bias ? to_float(((const uint16_t *)w.bias)[output + n]) : 0;
      y[m * width + output + n] = to_bf16(sum(acc[m][n]) + bias);
    }
}

template <int NR>
void rows_of(const Matrix &w, int64_t output, const uint16_t *x, int64_t rows, int64_t inputs, uint16_t *y,
             int64_t width) {
  in_pieces<NR == 4 ? MOST_FOR_4 : MOST>(rows, [&](int64_t row, auto height) {
    multiply<height, NR>(w, output, x + row * inputs, inputs, y + row * width, width);
  });
}

} // namespace

void qvl::rows_in_team(const Matrix *matrices, int64_t count, const uint16_t *x, int64_t rows, uint16_t *y,
                       Scratch &scratch) {
#ifdef QVL_BF16
  if (rows > FEW) return panels_in_team(matrices, count, x, rows, y, scratch.packed.data());
#endif
  const Pieces pieces(matrices, count, 16);
  const int64_t inputs = matrices->inputs, width = pieces.width, at_once = pieces.at_once();
#pragma omp for schedule(dynamic, at_once)
  for (int64_t i = 0; i < pieces.number; i++) {
    const auto [w, first, end, column] = pieces[i];
    uint16_t *to = y + column;
    int64_t o = first;
    if (rows * inputs > ALONE_UP_TO) {
      if (rows <= FOUR_UP_TO)
        for (; o + 4 <= end; o += 4) rows_of<4>(w, o, x, rows, inputs, to, width);
      for (; o + 2 <= end; o += 2) rows_of<2>(w, o, x, rows, inputs, to, width);
    }
    for (; o < end; o++) rows_of<1>(w, o, x, rows, inputs, to, width);
  }
}
