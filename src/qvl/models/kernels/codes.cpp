// Activations x weights held as 4- or 8-bit codes. The layout is linear.py's: tiles of 16 outputs, lines of 64 bytes.
//
// Activations are rounded to 8 bits, one scale for every 32 neighbours (llama.cpp's Q8_0), so that products and
// their sums are whole numbers; a weight group's scale is applied once for the group. Every output is added up
// in the same order whatever the number of rows, so a row's result doesn't depend on its batch.

#include <cmath>

#include "matrix.h"

using namespace qvl;

namespace {

// Tiles and rows multiplied together: their sums have to fit the registers. WIDEN: rows from which 4-bit codes are
// made bytes once for all rows.
#if defined(__AVX512F__) && defined(__AVX512VNNI__)
constexpr int64_t TILES_FOR_FEW = 4, TILES = 2, MOST_ROWS = 6, WIDEN = 13;
#else
constexpr int64_t TILES_FOR_FEW = 2, TILES = 1, MOST_ROWS = 4, WIDEN = 1ll << 40;
#endif

struct Activations { // T rows of `width` inputs, a multiple of STEP
  int8_t *values;
  float *scales; // (T, width / STEP)
  float *sums;   // (T, groups): of the rounded values, times their scales
  int64_t width, group_size, groups;

  Activations(const Matrix &w, Scratch &scratch)
      : values(scratch.values.data()), scales(scratch.scales.data()), sums(scratch.sums.data()),
        width(over(w.inputs, STEP) * STEP), group_size(std::min(over(w.across, STEP) * STEP, width)),
        groups(over(width, group_size)) {} // a short last group counts
};

void quantize_row(const void *x, int dtype, int64_t row, int64_t inputs, const int64_t *order, const Activations &a) {
  int8_t *values = a.values + row * a.width;
  const int64_t steps = a.width / STEP;
  float *sums = a.sums + row * a.groups;
  std::fill(sums, sums + a.groups, 0.0f);
  for (int64_t s = 0; s < steps; s++) {
    f32x16 v[2] = {};
    const int64_t first = s * STEP, count = std::min(STEP, inputs - first);
    if (count == STEP && !order) {
      v[0] = get16(x, dtype, row * inputs + first);
      v[1] = get16(x, dtype, row * inputs + first + 16);
    } else {
      for (int64_t i = 0; i < count; i++)
        v[i / 16][i % 16] = get(x, dtype, row * inputs + (order ? order[first + i] : first + i));
    }
    const float most = largest(larger(absolute(v[0]), absolute(v[1])));
    // what is too small for 127 / most is nothing
    const float scale = most / 127, inverse = most > 1e-36f ? 127 / most : 0;
    int32_t sum = 0;
    for (int h = 0; h < 2; h++)
      for (int l = 0; l < 16; l++) {
        const int32_t q = int32_t(nearbyintf(v[h][l] * inverse));
        values[first + 16 * h + l] = int8_t(q);
        sum += q;
      }
    a.scales[row * steps + s] = scale;
    sums[s * STEP / a.group_size] += scale * float(sum);
  }
}

// the codes of `lines` 4-bit lines, one byte each
void widen(const uint8_t *packed, int64_t lines, uint8_t *out) {
  for (int64_t b = 0; b < lines; b++) {
    const u8x64 both = load<u8x64>(packed + 64 * b);
    store(out + 128 * b, (u8x64)(both & 15));
    store(out + 128 * b + 64, (u8x64)(both >> 4));
  }
}

// one of the HALVES of sixteen values
inline Floats half(f32x16 x, int h) {
  Floats part;
  memcpy(&part, (const char *)&x + h * sizeof(Floats), sizeof(Floats));
  return part;
}

// MR rows x NT tiles of outputs over all inputs. `packed[n]` is a tile's first line.
template <int MR, int NT, int BITS>
void multiply(const Matrix &w, const uint8_t *const *packed, int64_t tile, const Activations &a, int64_t row,
              f32x16 (*totals)[NT]) {
  typedef typename StepSums<BITS>::type Sums;
  constexpr int NV = NT * HALVES; // vectors of outputs
  constexpr int64_t LINES = BITS == 4 ? 4 : 8;
  const int64_t steps = a.width / STEP, per_group = a.group_size / STEP, groups = a.groups;
  // short tiles side by side are streams too short for the processor to read ahead in: it is told where the next begin
  const bool is_short = a.width <= 4096;
  const int8_t *x[MR];
  const float *x_scales[MR], *x_sums[MR];
  Floats whole[MR][NV];
#pragma GCC unroll 8
  for (int m = 0; m < MR; m++) {
    x[m] = a.values + (row + m) * a.width;
    x_scales[m] = a.scales + (row + m) * steps;
    x_sums[m] = a.sums + (row + m) * groups;
#pragma GCC unroll 8
    for (int n = 0; n < NV; n++) whole[m][n] = Floats{};
  }
  for (int64_t g = 0; g < groups; g++) {
    Floats part[MR][NV];
#pragma GCC unroll 8
    for (int m = 0; m < MR; m++)
#pragma GCC unroll 8
      for (int n = 0; n < NV; n++) part[m][n] = Floats{};
    const int64_t end = std::min(steps, (g + 1) * per_group);
    for (int64_t s = g * per_group; s < end; s++) {
      Sums acc[MR][NV];
#pragma GCC unroll 8
      for (int m = 0; m < MR; m++)
#pragma GCC unroll 8
        for (int n = 0; n < NV; n++) acc[m][n] = Sums{};
      for (int b = 0; b < LINES; b++) {
        Codes codes[NV];
#pragma GCC unroll 8
        for (int n = 0; n < NV; n++) {
          if (BITS == 4 && MR <= 2 && is_short)
            __builtin_prefetch(packed[n / HALVES] + 64 * (s * LINES + b) + NT * a.width * 8, 0, 2);
          codes[n] = load<Codes>(packed[n / HALVES] + 64 * (s * LINES + b) + n % HALVES * sizeof(Codes));
          if constexpr (BITS == 4) {
            // the low halves first, then the high ones
            const Codes low = codes[n] & 15;
#pragma GCC unroll 8
            for (int m = 0; m < MR; m++)
              acc[m][n] = dot4(acc[m][n], low, load<int32_t>(x[m] + s * STEP + 8 * b));
            codes[n] = (Codes)((Ints)codes[n] >> 4) & 15;
          }
        }
#pragma GCC unroll 8
        for (int m = 0; m < MR; m++) {
          const int32_t x4 = load<int32_t>(x[m] + s * STEP + (BITS == 4 ? 8 * b + 4 : 4 * b));
#pragma GCC unroll 8
          for (int n = 0; n < NV; n++) acc[m][n] = dot4(acc[m][n], codes[n], x4);
        }
      }
#pragma GCC unroll 8
      for (int m = 0; m < MR; m++)
#pragma GCC unroll 8
        for (int n = 0; n < NV; n++)
          part[m][n] = fused(__builtin_convertvector(total(acc[m][n]), Floats), x_scales[m][s] - Floats{}, part[m][n]);
    }
#pragma GCC unroll 8
    for (int n = 0; n < NV; n++) {
      const int64_t place = ((tile + n / HALVES) * groups + g) * 16;
      const Floats scale = half(get16(w.scales, w.scale_dtype, place), n % HALVES);
      const Floats zero = half(w.zeros ? __builtin_convertvector(load<u8x16>(w.zeros + place), f32x16)
                                       : splat(w.bits == 4 ? 8.0f : 128.0f),
                               n % HALVES);
#pragma GCC unroll 8
      for (int m = 0; m < MR; m++)
        whole[m][n] = fused(fused(-zero, x_sums[m][g] - Floats{}, part[m][n]), scale, whole[m][n]);
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < MR; m++) memcpy(totals[m], whole[m], sizeof whole[m]);
}

struct Output {
  void *y;
  int32_t dtype;
  int64_t width;  // of a row of y
  int64_t column; // where this matrix's outputs begin
};

template <int MR, int NT, int BITS>
void multiply_and_store(const Matrix &w, const uint8_t *const *packed, int64_t tile, const Activations &a,
                        int64_t row, const Output &out) {
  f32x16 totals[MR][NT];
  multiply<MR, NT, BITS>(w, packed, tile, a, row, totals);
  for (int n = 0; n < NT; n++) {
    const int64_t first = (tile + n) * 16;
    const int64_t count = std::min<int64_t>(16, w.outputs - first);
    for (int m = 0; m < MR; m++) {
      const int64_t place = (row + m) * out.width + out.column + first;
      if (count == 16) {
        if (w.bias) totals[m][n] += get16(w.bias, out.dtype, first);
        put16(out.y, out.dtype, place, totals[m][n]);
      } else {
        for (int l = 0; l < count; l++)
          put(out.y, out.dtype, place + l, totals[m][n][l] + (w.bias ? get(w.bias, out.dtype, first + l) : 0));
      }
    }
  }
}

template <int NT, int BITS>
void rows_of_tiles(const Matrix &w, const uint8_t *const *packed, int64_t tile, const Activations &a,
                   int64_t rows, const Output &out) {
  in_pieces<NT == TILES ? MOST_ROWS : 2>(rows, [&](int64_t row, auto height) {
    multiply_and_store<height, NT, BITS>(w, packed, tile, a, row, out);
  });
}

template <int NT>
void tiles(const Matrix &w, int64_t tile, const Activations &a, int64_t rows, const Output &out,
           std::vector<uint8_t> &wide) {
  const int64_t tile_bytes = a.width * 16 * w.bits / 8;
  const uint8_t *packed[NT];
  for (int n = 0; n < NT; n++) packed[n] = (const uint8_t *)w.weight + (tile + n) * tile_bytes;
  int bits = w.bits;
  if (bits == 4 && rows >= WIDEN) { // widened once for all the rows
    wide.resize(NT * 2 * tile_bytes);
    for (int n = 0; n < NT; n++) {
      widen(packed[n], tile_bytes / 64, wide.data() + n * 2 * tile_bytes);
      packed[n] = wide.data() + n * 2 * tile_bytes;
    }
    bits = 8;
  }
  if (bits == 4)
    rows_of_tiles<NT, 4>(w, packed, tile, a, rows, out);
  else
    rows_of_tiles<NT, 8>(w, packed, tile, a, rows, out);
}

} // namespace

void qvl::codes_in_team(const Matrix *matrices, int64_t count, const void *x, int dtype, int64_t rows, void *y,
                        Scratch &scratch) {
  const Activations a(*matrices, scratch);
  const int64_t num_tiles = rows <= 2 ? TILES_FOR_FEW : TILES;
  const Pieces pieces(matrices, count, 16 * num_tiles);
  const int64_t at_once = pieces.at_once();
  std::vector<uint8_t> wide;
#pragma omp for schedule(static)
  for (int64_t row = 0; row < rows; row++) quantize_row(x, dtype, row, matrices->inputs, matrices->order, a);
#pragma omp for schedule(dynamic, at_once)
  for (int64_t i = 0; i < pieces.number; i++) {
    const auto [w, first, end, column] = pieces[i];
    const Output out{y, dtype, pieces.width, column};
    const int64_t tile = first / 16, last = over(end, 16);
    if (last - tile < num_tiles)
      for (int64_t t = tile; t < last; t++) tiles<1>(w, t, a, rows, out, wide);
    else if (num_tiles == TILES_FOR_FEW)
      tiles<TILES_FOR_FEW>(w, tile, a, rows, out, wide);
    else
      tiles<TILES>(w, tile, a, rows, out, wide);
  }
}
