// A matrix as it is held, and products of a few rows with it, carried out by a team of threads that is there already.
//
// Whoever opens the team (`#pragma omp parallel`) can do one product in it, or a model's whole step: a region of its own
// for each product costs a tenth of a decoding step. Every thread of the team calls these functions with the same
// arguments; they end with a barrier.

#pragma once

#include <algorithm>
#include <new>
#include <omp.h>
#include <type_traits>
#include <vector>

#include "vectors.h"

namespace qvl {

constexpr int64_t STEP = 32; // CODES: inputs under one scale of the activations. FP8: weights widened together

enum Kind { ROWS = 0, CODES = 1, FP8 = 2 }; // bf16.cpp, codes.cpp, fp8.cpp

struct Matrix {
  const void *weight;   // ROWS, FP8: (outputs, inputs). CODES: tiles, as linear.py packs them
  const void *scales;   // CODES: (tiles, groups, 16). FP8: (blocks down, blocks across)
  const uint8_t *zeros; // CODES; null: the middle of the codes everywhere
  const void *bias;     // null, or (outputs,) as the activations
  const int64_t *order; // CODES; null, or (inputs,): which input each column of the codes multiplies
  int64_t outputs, inputs;
  int64_t down, across; // FP8: rows and columns of a block. CODES: `across` inputs share a scale
  int32_t kind, scale_dtype, bits;
};

// Where the processor multiplies bf16, more rows of it than FEW are a product of their own (panels.cpp): up to 2 of them
// are read faster one by one, measured.
#ifdef QVL_BF16
constexpr int64_t FEW = 2;
void panels_in_team(const Matrix *w, int64_t count, const uint16_t *x, int64_t rows, uint16_t *y, uint32_t *packed);
int64_t panels_size(int64_t inputs, int64_t rows); // values of `packed`, which the team works in
#endif

// std::vector from the beginning of a cache line on: a vector that lies in two lines is read twice
template <class T> struct FromALine {
  typedef T value_type;
  T *allocate(size_t count) { return (T *)::operator new(count * sizeof(T), std::align_val_t(64)); }
  void deallocate(T *p, size_t) { ::operator delete(p, std::align_val_t(64)); }
  bool operator==(const FromALine &) const { return true; }
  bool operator!=(const FromALine &) const { return false; }
};
template <class T> using Lines = std::vector<T, FromALine<T>>;

// Activations made ready for a product: filled by the team, so it outlives one. It serves any number of products, one
// after the other.
struct Scratch {
  Lines<int8_t> values;
  Lines<float> scales, sums, wide;
  Lines<uint32_t> packed;

  // before the team is there
  void reserve(const Matrix &w, int64_t rows);
};

// This thread's own, which lasts: memory fresh from the system is cleared page by page. `done` with it, it is let go
// where it has grown large.
Scratch &kept_scratch();
void done(Scratch &scratch);

// y (rows, sum of outputs) = x (rows, inputs) times each of `count` matrices, side by side. They are of one kind, and
// alike in inputs, order and `across`. ROWS and FP8: x and y bf16.
void rows_in_team(const Matrix *w, int64_t count, const uint16_t *x, int64_t rows, uint16_t *y, Scratch &scratch);
void codes_in_team(const Matrix *w, int64_t count, const void *x, int dtype, int64_t rows, void *y, Scratch &scratch);
void fp8_in_team(const Matrix *w, int64_t count, const uint16_t *x, int64_t rows, uint16_t *y, Scratch &scratch);

inline void multiply_in_team(const Matrix *w, int64_t count, const void *x, int dtype, int64_t rows, void *y,
                             Scratch &scratch) {
  if (w->kind == CODES)
    codes_in_team(w, count, x, dtype, rows, y, scratch);
  else if (w->kind == FP8)
    fp8_in_team(w, count, (const uint16_t *)x, rows, (uint16_t *)y, scratch);
  else
    rows_in_team(w, count, (const uint16_t *)x, rows, (uint16_t *)y, scratch);
}

inline int64_t over(int64_t a, int64_t b) { return (a + b - 1) / b; }

// work(row, height) over all rows in pieces of at most MOST, of nearly equal height: 8 rows are 4 + 4, not 6 + 2. `height`
// is a constant of the type, so that what it sizes fits the registers.
template <int MOST, class Work> inline void in_pieces(int64_t rows, Work work) {
  const auto call = [&](auto self, int64_t row, int64_t height, auto constant) {
    if (height == constant)
      work(row, constant);
    else if constexpr (constant > 1)
      self(self, row, height, std::integral_constant<int, constant - 1>{});
  };
  const int64_t pieces = over(rows, MOST);
  for (int64_t p = 0, row = 0, height; p < pieces; p++, row += height) {
    height = over(rows - row, pieces - p);
    call(call, row, height, std::integral_constant<int, MOST>{});
  }
}

// The outputs of matrices side by side, cut into pieces of at most `size` that lie in one matrix.
struct Pieces {
  const Matrix *w;
  int64_t size, width = 0, number = 0;

  Pieces(const Matrix *w, int64_t count, int64_t size) : w(w), size(size) {
    for (int64_t k = 0; k < count; k++) {
      width += w[k].outputs;
      number += over(w[k].outputs, size);
    }
  }
  // neighbours, which one thread takes in turn: memory is fastest read straight on
  int64_t at_once() const { return std::max<int64_t>(1, number / (16 * omp_get_num_threads())); }

  struct Piece {
    const Matrix &w;
    int64_t first, end; // outputs
    int64_t column;     // of y, where the matrix begins
  };
  Piece operator[](int64_t i) const {
    int64_t column = 0;
    for (const Matrix *m = w;; m++) {
      const int64_t pieces = over(m->outputs, size);
      if (i < pieces) return {*m, i * size, std::min(m->outputs, (i + 1) * size), column};
      i -= pieces;
      column += m->outputs;
    }
  }
};

} // namespace qvl
