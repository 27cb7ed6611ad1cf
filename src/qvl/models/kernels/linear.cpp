// One product as a team of its own; the kinds of matrices are in bf16.cpp, codes.cpp and fp8.cpp.

#include "matrix.h"

using namespace qvl;

void Scratch::reserve(const Matrix &w, int64_t rows) {
  const auto grow = [](auto &v, int64_t size) {
    if (int64_t(v.size()) < size) v.resize(size);
  };
  const int64_t steps = over(w.inputs, STEP);
  if (w.kind == CODES) {
    grow(values, rows * steps * STEP);
    grow(scales, rows * steps);
    grow(sums, rows * steps); // at least a step to a group
  } else if (w.kind == FP8) {
    grow(wide, rows * over(w.inputs, w.across) * over(w.across, STEP) * STEP);
  }
#ifdef QVL_BF16
  if (w.kind == ROWS && rows > FEW) grow(packed, panels_size(w.inputs, rows));
#endif
}

Scratch &qvl::kept_scratch() {
  static thread_local Scratch scratch;
  return scratch;
}

void qvl::done(Scratch &s) {
  constexpr size_t MOST = 32 << 20; // bytes
  if (s.values.size() + sizeof(float) * (s.scales.size() + s.sums.size() + s.wide.size() + s.packed.size()) > MOST)
    s = Scratch();
}

// Whether bf16 is multiplied as such, whatever the number of rows
extern "C" int32_t qvl_multiplies_bf16() {
#ifdef QVL_BF16
  return 1;
#else
  return 0;
#endif
}

// What multiply_in_team says, by `num_threads` threads.
extern "C" void qvl_linear(const Matrix *matrices, int64_t count, const void *x, int32_t dtype, int64_t rows, void *y,
                           int32_t num_threads) {
  Scratch &scratch = kept_scratch();
  scratch.reserve(*matrices, rows);
#pragma omp parallel num_threads(num_threads)
  multiply_in_team(matrices, count, x, dtype, rows, y, scratch);
  done(scratch);
}
