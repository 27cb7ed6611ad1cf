// FP8 (e4m3) weights as they are published: (outputs, inputs), a byte each, with a scale for every block of `down`
// rows x `across` columns. Times a few rows of bf16 activations; or made bf16 or fp32 for another's product.
//
// e4m3's bits, moved to where fp16 has its sign, exponent and mantissa, are 2^-8 of the number, denormals included, and
// processors widen fp16:   s eeee mmm  →  s 0eeee mmm0000000
// Products are summed in fp32 over the columns of a block, then scaled: no weight is rounded. The order is the same for
// every number of rows, so a row's result doesn't depend on its batch.

#include "matrix.h"

using namespace qvl;

namespace {

constexpr int64_t LINE = STEP;
#if defined(__AVX512F__)
constexpr int64_t MOST_ROWS = 4, ROWS_OF_WEIGHTS = 4;
constexpr int64_t ALONE_UP_TO = 2560; // bf16.cpp says why
#else // half the registers, of half the size
constexpr int64_t MOST_ROWS = 2, ROWS_OF_WEIGHTS = 1;
constexpr int64_t ALONE_UP_TO = 0;
#endif

// Rows of x in fp32. Every block of columns begins a line, whose last one is filled up with zeros; a line holds its
// inputs of even number, then those of odd number, as `small` gives the weights.
struct Activations {
  float *values; // (T, blocks, lines, LINE)
  int64_t inputs, across, blocks, lines;

  Activations(const Matrix &w, Scratch &scratch)
      : values(scratch.wide.data()), inputs(w.inputs), across(w.across), blocks(over(inputs, across)),
        lines(over(across, LINE)) {}
  int64_t width() const { return blocks * lines * LINE; }
  void widen(const uint16_t *x, int64_t row) const {
    float *to = values + row * width();
    std::fill(to, to + width(), 0.0f);
    for (int64_t i = 0; i < inputs; i++) {
      const int64_t in_block = i % across, in_line = in_block % LINE;
      const int64_t line = i / across * lines + in_block / LINE;
      to[line * LINE + in_line % 2 * 16 + in_line / 2] = to_float(x[row * inputs + i]);
    }
  }
};

struct Line {
  f32x16 even, odd;
};

// 2^-8 of a line's numbers
inline Line small(const uint8_t *p) {
  const i16x16 pairs = load<i16x16>(p), kept = i16x16{} - (int16_t)0x4080;
  return {halves_widened((u16x16)(((pairs << 8) >> 1) & kept)), halves_widened((u16x16)((pairs >> 1) & kept))};
}
inline Line small(const uint8_t *p, int64_t count) {
  uint8_t padded[LINE] = {};
  memcpy(padded, p, count);
  return small(padded);
}

// MR rows of x from `row` on times NR rows of weights from `output` on
template <int MR, int NR>
void multiply(const Matrix &w, int64_t output, const Activations &a, int64_t row, uint16_t *y, int64_t width) {
  const uint8_t *weight = (const uint8_t *)w.weight + output * a.inputs;
  const float *x = a.values + row * a.width();
  int64_t scales[NR];
  f32x16 whole[MR][NR];
#pragma GCC unroll 8
  for (int n = 0; n < NR; n++) {
    scales[n] = (output + n) / w.down * a.blocks;
#pragma GCC unroll 8
    for (int m = 0; m < MR; m++) whole[m][n] = f32x16{};
  }
  for (int64_t block = 0; block < a.blocks; block++) {
    f32x16 part[MR][NR], odd[MR][NR];
#pragma GCC unroll 8
    for (int m = 0; m < MR; m++)
#pragma GCC unroll 8
      for (int n = 0; n < NR; n++) part[m][n] = odd[m][n] = f32x16{};
    const auto add = [&](int n, Line weights, const float *values) {
#pragma GCC unroll 8
      for (int m = 0; m < MR; m++) {
        const float *from = values + m * a.width();
        part[m][n] = fused(weights.even, load<f32x16>(from), part[m][n]);
        odd[m][n] = fused(weights.odd, load<f32x16>(from + 16), odd[m][n]);
      }
    };
    int64_t i = block * a.across;
    const int64_t end = std::min(a.inputs, i + a.across);
    const float *values = x + block * a.lines * LINE;
    for (; i + LINE <= end; i += LINE, values += LINE)
#pragma GCC unroll 8
      for (int n = 0; n < NR; n++) {
        const uint8_t *from = weight + n * a.inputs + i;
        // several short rows side by side are streams too short for the processor to read ahead in
        if (NR > 1) __builtin_prefetch(from + NR * a.inputs);
        add(n, small(from), values);
      }
    if (i < end)
#pragma GCC unroll 8
      for (int n = 0; n < NR; n++) add(n, small(weight + n * a.inputs + i, end - i), values);
#pragma GCC unroll 8
    for (int n = 0; n < NR; n++) {
      const f32x16 scale = splat(get(w.scales, w.scale_dtype, scales[n] + block) * 256);
#pragma GCC unroll 8
      for (int m = 0; m < MR; m++) whole[m][n] = fused(part[m][n] + odd[m][n], scale, whole[m][n]);
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < MR; m++)
#pragma GCC unroll 8
    for (int n = 0; n < NR; n++) {
      const float bias = w.bias ? to_float(((const uint16_t *)w.bias)[output + n]) : 0;
      y[(row + m) * width + output + n] = to_bf16(sum(whole[m][n]) + bias);
    }
}

template <int NR>
void rows_of(const Matrix &w, int64_t output, const Activations &a, int64_t rows, uint16_t *y, int64_t width) {
  in_pieces<MOST_ROWS>(rows, [&](int64_t row, auto height) { multiply<height, NR>(w, output, a, row, y, width); });
}

} // namespace

// out (rows, inputs) = these rows of weights, bf16 or fp32; the first one begins a block.
extern "C" void qvl_fp8_widen(const uint8_t *weight, const void *scales, int32_t scale_dtype, int64_t rows,
                              int64_t inputs, int64_t down, int64_t across, void *out, int32_t dtype,
                              int32_t num_threads) {
  typedef int8_t i8x16 __attribute__((vector_size(16)));
  const auto widened16 = [](const uint8_t *p) {
    const i16x16 moved = (__builtin_convertvector(load<i8x16>(p), i16x16) << 7) & (int16_t)~0x4000;
    return halves_widened((u16x16)moved);
  };
  const int64_t blocks = (inputs + across - 1) / across;
#pragma omp parallel for num_threads(num_threads)
  for (int64_t row = 0; row < rows; row++)
    for (int64_t block = 0; block < blocks; block++) {
      const float scale = get(scales, scale_dtype, row / down * blocks + block) * 256;
      int64_t i = block * across;
      const int64_t end = std::min(inputs, i + across);
      for (; i + 16 <= end; i += 16)
        put16(out, dtype, row * inputs + i, widened16(weight + row * inputs + i) * splat(scale));
      if (i < end) {
        uint8_t padded[16] = {};
        memcpy(padded, weight + row * inputs + i, end - i);
        const f32x16 rest = widened16(padded) * splat(scale);
        for (int64_t l = 0; i + l < end; l++) put(out, dtype, row * inputs + i + l, rest[l]);
      }
    }
}

void qvl::fp8_in_team(const Matrix *matrices, int64_t count, const uint16_t *x, int64_t rows, uint16_t *y,
                      Scratch &scratch) {
  const Activations a(*matrices, scratch);
  const Pieces pieces(matrices, count, 16);
  const int64_t at_once = pieces.at_once();
#pragma omp for schedule(static)
  for (int64_t row = 0; row < rows; row++) a.widen(x, row);
#pragma omp for schedule(dynamic, at_once)
  for (int64_t i = 0; i < pieces.number; i++) {
    const auto [w, first, end, column] = pieces[i];
    uint16_t *to = y + column;
    int64_t o = first;
    if (rows * a.inputs > ALONE_UP_TO)
      for (; o + ROWS_OF_WEIGHTS <= end; o += ROWS_OF_WEIGHTS) rows_of<ROWS_OF_WEIGHTS>(w, o, a, rows, to, pieces.width);
    for (; o < end; o++) rows_of<1>(w, o, a, rows, to, pieces.width);
  }
}
