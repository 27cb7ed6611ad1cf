// Several rows of bf16 activations x bf16 weights as they are published: (outputs, inputs), row by row.
//
// Rows of x lie side by side in the lanes of a vector, two inputs to a lane, and a pair of weights is spread over all
// lanes: weights are read once, where they lie, and no sum crosses lanes. Sums are fp32, in the order of the inputs, so a
// row's result doesn't depend on how many there are beside it.

#include "matrix.h"

#ifdef QVL_BF16

using namespace qvl;

namespace {

constexpr int HIGH = 8;       // outputs at a time: their rows are often 4 KB apart, and an L1 cache holds 8 such lines
constexpr int64_t PANEL = 48; // rows of x; HIGH x PANEL sums are 24 registers
constexpr int64_t LINE = 16;  // pairs of weights in a cache line
constexpr int64_t PIECE = 32; // outputs that pass over all panels together: their weights stay in the L2 cache

inline void put_rounded(uint16_t *to, f32x16 x) { store(to, narrowed(x)); }
inline void put_rounded(uint16_t *to, f32x8 x) {
  for (int l = 0; l < 8; l++) to[l] = to_bf16(x[l]);
}

// Rows [first, first + height) of x in as many lanes as are needed
struct Panel {
  int64_t first, height, lanes;
  Panel(int64_t number, int64_t rows) : first(number * PANEL), height(std::min(PANEL, rows - first)) {
    lanes = height <= 8 ? 8 : over(height, 16) * 16;
  }
};

// 16 rows of 16 → their columns
void transpose(__m512i r[16]) {
  __m512i t[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; i += 4)
#pragma GCC unroll 16
    for (int j = 0; j < 2; j++) {
      r[i + 2 * j] = _mm512_unpacklo_epi64(t[i + j], t[i + 2 + j]);
      r[i + 2 * j + 1] = _mm512_unpackhi_epi64(t[i + j], t[i + 2 + j]);
    }
  // quarter k of r[i + j] is now column 4k + j of rows i … i + 3
#pragma GCC unroll 16
  for (int j = 0; j < 4; j++)
#pragma GCC unroll 16
    for (int i = 0; i < 16; i += 8) {
      t[i + j] = _mm512_shuffle_i32x4(r[i + j], r[i + 4 + j], 0x88);
      t[i + 4 + j] = _mm512_shuffle_i32x4(r[i + j], r[i + 4 + j], 0xdd);
    }
#pragma GCC unroll 16
  for (int j = 0; j < 4; j++)
#pragma GCC unroll 16
    for (int k = 0; k < 2; k++) {
      r[4 * k + j] = _mm512_shuffle_i32x4(t[4 * k + j], t[8 + 4 * k + j], 0x88);
      r[8 + 4 * k + j] = _mm512_shuffle_i32x4(t[4 * k + j], t[8 + 4 * k + j], 0xdd);
    }
}

// to (pairs, lanes): lanes beyond the height hold zeros
void pack(const uint16_t *x, int64_t inputs, const Panel &panel, uint32_t *to) {
  const int64_t pairs = over(inputs, 2);
  for (int64_t i = 0; i < pairs; i += 16)
    for (int64_t lane = 0; lane < panel.lanes; lane += 16) {
      const __mmask32 kept = inputs - 2 * i >= 32 ? ~0u : (1u << (inputs - 2 * i)) - 1;
      __m512i rows[16];
      for (int64_t r = 0; r < 16; r++) {
        const bool is_row = lane + r < panel.height;
        rows[r] = is_row ? _mm512_maskz_loadu_epi16(kept, x + (panel.first + lane + r) * inputs + 2 * i)
                         : _mm512_setzero_si512();
      }
      transpose(rows);
      for (int64_t j = 0; j < std::min<int64_t>(16, pairs - i); j++)
        if (panel.lanes == 8)
          _mm256_storeu_si256((__m256i *)(to + (i + j) * 8), _mm512_castsi512_si256(rows[j]));
        else
          _mm512_storeu_si512(to + (i + j) * panel.lanes + lane, rows[j]);
    }
}

// N outputs from `output` on for the rows of a panel, W vectors of lanes; memory from `next` on is fetched meanwhile
template <class V, int W, int N>
void multiply(const Matrix &w, int64_t output, const uint32_t *x, const Panel &panel, const char *next, uint16_t *y,
              int64_t width) {
  constexpr int64_t lanes = sizeof(V) / sizeof(float), all = W * lanes;
  const int64_t inputs = w.inputs, pairs = inputs / 2;
  const uint16_t *weight = (const uint16_t *)w.weight + output * inputs;
  V acc[N][W];
#pragma GCC unroll 8
  for (int n = 0; n < N; n++)
#pragma GCC unroll 4
    for (int v = 0; v < W; v++) acc[n][v] = V{};
  const auto add = [&](int64_t i, auto pair_of) {
    Pairs<V> line[W];
#pragma GCC unroll 4
    for (int v = 0; v < W; v++) line[v] = Pairs<V>(x + i * all + v * lanes);
#pragma GCC unroll 8
    for (int n = 0; n < N; n++) {
      const Pairs<V> pair(pair_of(weight + n * inputs));
#pragma GCC unroll 4
      for (int v = 0; v < W; v++) acc[n][v] = dot(acc[n][v], pair, line[v]);
    }
  };
  for (int64_t first = 0; first < pairs; first += LINE) {
    if (next)
#pragma GCC unroll 8
      for (int n = 0; n < N; n++) __builtin_prefetch(next + (first / LINE * N + n) * 64, 0, 2);
    for (int64_t i = first; i < std::min(pairs, first + LINE); i++)
      add(i, [&](const uint16_t *row) {
        uint32_t pair;
        memcpy(&pair, row + 2 * i, sizeof pair);
        return pair;
      });
  }
  if (inputs % 2) add(pairs, [&](const uint16_t *row) { return uint32_t(row[inputs - 1]); });

  uint16_t done[N][all];
  for (int n = 0; n < N; n++) {
    const float bias = w.bias ? to_float(((const uint16_t *)w.bias)[output + n]) : 0;
#pragma GCC unroll 4
    for (int v = 0; v < W; v++) put_rounded(done[n] + v * lanes, acc[n][v] + bias);
  }
  for (int64_t r = 0; r < panel.height; r++)
    for (int n = 0; n < N; n++) y[(panel.first + r) * width + output + n] = done[n][r];
}

// Outputs [first, end) for the rows of a panel. `fetch`: their weights are read for the first time.
void multiply(const Matrix &w, int64_t first, int64_t end, const uint32_t *x, const Panel &panel, bool fetch, uint16_t *y,
              int64_t width) {
  in_pieces<HIGH>(end - first, [&](int64_t at, auto high) {
    const int64_t output = first + at;
    const bool is_last = output + 2 * high > w.outputs;
    const char *next = (const char *)w.weight + (output + high) * w.inputs * sizeof(uint16_t);
    if (!fetch || is_last) next = nullptr;
    if (panel.lanes == 8)
      multiply<f32x8, 1, high>(w, output, x, panel, next, y, width);
    else if (panel.lanes == 16)
      multiply<f32x16, 1, high>(w, output, x, panel, next, y, width);
    else if (panel.lanes == 32)
      multiply<f32x16, 2, high>(w, output, x, panel, next, y, width);
    else
      multiply<f32x16, 3, high>(w, output, x, panel, next, y, width);
  });
}

} // namespace

int64_t qvl::panels_size(int64_t inputs, int64_t rows) { return over(inputs, 2) * over(rows, PANEL) * PANEL; }

void qvl::panels_in_team(const Matrix *matrices, int64_t count, const uint16_t *x, int64_t rows, uint16_t *y,
                         uint32_t *packed) {
  const int64_t inputs = matrices->inputs, panels = over(rows, PANEL), size = over(inputs, 2) * PANEL;
  const Pieces pieces(matrices, count, PIECE);
  const int64_t at_once = pieces.at_once();
#pragma omp for schedule(static)
  for (int64_t p = 0; p < panels; p++) pack(x, inputs, Panel(p, rows), packed + p * size);
#pragma omp for schedule(dynamic, at_once)
  for (int64_t i = 0; i < pieces.number; i++) {
    const auto [w, first, end, column] = pieces[i];
    for (int64_t p = 0; p < panels; p++)
      multiply(w, first, end, packed + p * size, Panel(p, rows), p == 0, y + column, pieces.width);
  }
}

#endif
