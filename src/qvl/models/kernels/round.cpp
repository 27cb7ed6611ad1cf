// Weights → 4- or 8-bit codes in linear.py's layout, as `quantize_codes` and `pack_codes` make them, to the last bit.
//
// PyTorch makes a dozen passes of it; one keeps loading a large checkpoint near the memory's speed.

#include <algorithm>
#include <cmath>
#include <vector>

#include "vectors.h"

using namespace qvl;

namespace {

constexpr float TO_WHOLE = 12582912.0f; // 1.5 * 2^23: adding it rounds to whole numbers, ties to even

// the value farthest from zero, the first of two alike
float farthest(const void *w, int dtype, int64_t first, int64_t count) {
  f32x16 most = {};
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) most = larger(most, absolute(get16(w, dtype, first + i)));
  float size = largest(most);
  for (; i < count; i++) size = std::max(size, std::abs(get(w, dtype, first + i)));
  for (i = 0; i < count; i++) {
    const float x = get(w, dtype, first + i);
    if (std::abs(x) == size) return x;
  }
  return size;
}

void codes_of(const void *w, int dtype, int64_t first, int64_t count, float inverse, float middle, uint8_t *codes) {
  const f32x16 top = splat(2 * middle - 1), zero = {};
  int64_t i = 0;
  for (; i < count; i += 16) {
    f32x16 x = {};
    if (i + 16 <= count)
      x = get16(w, dtype, first + i);
    else
      for (int l = 0; i + l < count; l++) x[l] = get(w, dtype, first + i + l);
    x = ((x * inverse + TO_WHOLE) - TO_WHOLE) + middle;
    x = x < zero ? zero : x;
    x = x > top ? top : x;
    const u8x16 bytes = __builtin_convertvector(__builtin_convertvector(x, i32x16), u8x16);
    memcpy(codes + i, &bytes, std::min<int64_t>(16, count - i));
  }
}

} // namespace

// `rows` of `inputs` weights → packed (N, lines, 16, 4) and bf16 scales (N, G, 16), N whole tiles of 16 rows; what is
// padded is zero.
extern "C" void qvl_round(const void *weight, int32_t dtype, int64_t rows, int64_t inputs, int64_t group_size,
                          int32_t bits, int64_t lines, uint8_t *packed, uint16_t *scales, int32_t num_threads) {
  const int64_t groups = (inputs + group_size - 1) / group_size, num_tiles = (rows + 15) / 16;
  const float middle = float(1 << (bits - 1));
#pragma omp parallel num_threads(num_threads)
  {
    std::vector<uint8_t> codes(lines * (bits == 4 ? 8 : 4));
#pragma omp for schedule(dynamic, 1)
    for (int64_t tile = 0; tile < num_tiles; tile++)
      for (int64_t lane = 0; lane < 16; lane++) {
        const int64_t row = tile * 16 + lane;
        std::fill(codes.begin(), codes.end(), 0);
        for (int64_t g = 0; g < groups; g++) {
          uint16_t scale = 0;
          if (row < rows) {
            const int64_t first = g * group_size, count = std::min(group_size, inputs - first);
            scale = to_bf16(farthest(weight, dtype, row * inputs + first, count) / -middle);
            const float inverse = to_float(scale) == 0 ? 0 : 1 / to_float(scale);
            codes_of(weight, dtype, row * inputs + first, count, inverse, middle, codes.data() + first);
          }
          scales[(tile * groups + g) * 16 + lane] = scale;
        }
        uint8_t *line = packed + tile * lines * 64 + lane * 4;
        for (int64_t b = 0; b < lines; b++, line += 64) {
          uint32_t four = load<uint32_t>(codes.data() + (bits == 4 ? 8 : 4) * b);
          if (bits == 4) four |= load<uint32_t>(codes.data() + 8 * b + 4) << 4;
          store(line, four);
        }
      }
  }
}
