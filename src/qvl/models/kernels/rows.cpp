// Row by row work between the matrix products, each a team of its own: rows.h has the rows.

#include "rows.h"

using namespace qvl;

namespace {

// below this many values a second thread costs more than it saves
constexpr int64_t ALONE = 1 << 15;

inline int threads_for(int64_t values, int num_threads) { return values < ALONE ? 1 : num_threads; }

} // namespace

extern "C" void qvl_rms_norm(const void *x, const void *weight, void *y, int64_t rows, int64_t size, float eps,
                             int32_t dtype, int32_t num_threads) {
#pragma omp parallel for num_threads(threads_for(rows * size, num_threads))
  for (int64_t r = 0; r < rows; r++) norm_row(x, r * size, weight, y, r * size, size, eps, dtype);
}

// Rows of gate and of up lie `stride` values apart, those of y are dense.
extern "C" void qvl_silu_mul(const void *gate, const void *up, void *y, int64_t rows, int64_t size, int64_t stride,
                             int32_t dtype, int32_t num_threads) {
#pragma omp parallel for num_threads(threads_for(rows * size, num_threads))
  for (int64_t r = 0; r < rows; r++) silu_mul_row(gate, up, r * stride, y, r * size, size, dtype);
}

// y (rows, heads, size). Rows of x lie `row_stride` values apart and heads `size`; cos and sin are (rows, size).
extern "C" void qvl_rope(const void *x, const void *cos, const void *sin, void *y, int64_t rows, int64_t heads,
                         int64_t size, int64_t row_stride, int32_t dtype, int32_t table_dtype, int32_t num_threads) {
#pragma omp parallel for num_threads(threads_for(rows * heads * size, num_threads))
  for (int64_t r = 0; r < rows; r++)
    for (int64_t h = 0; h < heads; h++)
      rope_head(x, r * row_stride + h * size, cos, sin, r * size, table_dtype, y, (r * heads + h) * size, size, dtype);
}
