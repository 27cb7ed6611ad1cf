// A matrix as it is held, and products of a few rows with it, carried out by a team of threads that is there already.
//
// Whoever opens the team (`#pragma omp parallel`) can do one product in it, or a model's whole step: a region of its own
// for each product costs a tenth of a decoding step. Every thread of the team calls these functions with the same
// arguments; they end with a barrier.

#pragma once

#include <algorithm>
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

// Activations made ready for CODES or FP8: filled by the team, so it outlives a product. One serves any number of
// products, one after the other.
struct Scratch {
  std::vector<int8_t> values;
  std::vector<float> scales, sums, wide;

  // before the team is there
  void reserve(const Matrix &w, int64_t rows);
};

// y (rows, sum of outputs) = x (rows, inputs) times each of `count` matrices, side by side. They are of one kind, and
// alike in inputs, order and `across`. ROWS and FP8: x and y bf16.
void rows_in_team(const Matrix *w, int64_t count, const uint16_t *x, int64_t rows, uint16_t *y);
void codes_in_team(const Matrix *w, int64_t count, const void *x, int dtype, int64_t rows, void *y, Scratch &scratch);
void fp8_in_team(const Matrix *w, int64_t count, const uint16_t *x, int64_t rows, uint16_t *y, Scratch &scratch);

inline void multiply_in_team(const Matrix *w, int64_t count, const void *x, int dtype, int64_t rows, void *y,
                             Scratch &scratch) {
  if (w->kind == CODES)
    codes_in_team(w, count, x, dtype, rows, y, scratch);
  else if (w->kind == FP8)
    fp8_in_team(w, count, (const uint16_t *)x, rows, (uint16_t *)y, scratch);
  else
    rows_in_team(w, count, (const uint16_t *)x, rows, (uint16_t *)y);
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
