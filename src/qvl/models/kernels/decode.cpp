// A decoding step through all layers of a dense decoder: one team of threads from the first norm to the last.
//
// Each of T sequences adds one token. The order of work and of roundings is the decoder's (models/decoder.py), but for
// attention, whose sums and weights stay in fp32. Keys and values lie in the engine's blocks and are read there.
// Legend: T rows, D width, N query heads, K key/value heads, G = N / K, H head dim, I inner width, M blocks of a table.

#include "matrix.h"
#include "rows.h"

using namespace qvl;

namespace {

struct Layer {
  const uint16_t *input_norm, *post_norm; // (D,)
  const uint16_t *q_norm, *k_norm;        // (H,), or null
  Matrix qkv[3], out, gate_up[2], down;
  uint16_t *keys, *values; // (slots, K, H)
};

struct Step {
  int64_t rows, width, heads, kv_heads, head_dim, inner;
  int64_t block_size, table_width;
  const int32_t *blocks; // (T, M)
  const int64_t *ends;   // (T,): tokens of each sequence, the new one included
  const uint16_t *cos, *sin; // (T, H)
  const uint16_t *final_norm;
  uint16_t *hidden; // (T, D): embedded tokens, and what comes out
  float eps;
};

// What the team shares between the layers
struct Buffers {
  std::vector<uint16_t> normed, qkv, mixed, gate_up, inner, out;
  Scratch &scratch = kept_scratch();

  Buffers(const Step &s)
      : normed(s.rows * s.width), qkv(s.rows * (s.heads + 2 * s.kv_heads) * s.head_dim),
        mixed(s.rows * s.heads * s.head_dim), gate_up(s.rows * 2 * s.inner), inner(s.rows * s.inner),
        out(s.rows * s.width) {}
};

inline float dot(const float *q, const uint16_t *k, int64_t size) {
  f32x16 acc = {};
  int64_t i = 0;
  for (; i + 16 <= size; i += 16) acc = fused(load<f32x16>(q + i), widened(load<u16x16>(k + i)), acc);
  float total = sum(acc);
  for (; i < size; i++) total += q[i] * to_float(k[i]);
  return total;
}

// to += weight * v
inline void add(float *to, float weight, const uint16_t *v, int64_t size) {
  int64_t i = 0;
  for (; i + 16 <= size; i += 16)
    store(to + i, fused(splat(weight), widened(load<u16x16>(v + i)), load<f32x16>(to + i)));
  for (; i < size; i++) to[i] += weight * to_float(v[i]);
}

// scores (length,) → e^(score - largest); returns their sum
float exponentials(float *scores, int64_t length) {
  float most = scores[0], total = 0;
  for (int64_t l = 1; l < length; l++) most = std::max(most, scores[l]);
  int64_t l = 0;
  f32x16 sums = {};
  for (; l + 16 <= length; l += 16) {
    const f32x16 e = exponential(load<f32x16>(scores + l) - splat(most));
    store(scores + l, e);
    sums += e;
  }
  for (; l < length; l++) total += scores[l] = exponential(splat(scores[l] - most))[0];
  return total + sum(sums);
}

// One key/value head of one row: rotates and stores the new key, stores the new value, and lets the G query heads of
// this head attend to all there is.
void attend(const Layer &layer, const Step &s, int64_t row, int64_t head, const uint16_t *qkv, uint16_t *mixed,
            std::vector<float> &scratch) {
  const int64_t size = s.head_dim, group = s.heads / s.kv_heads, length = s.ends[row];
  const int32_t *table = s.blocks + row * s.table_width;
  // where a block's rows of this head begin, and how far they lie apart
  const auto start = [&](int64_t block) { return (table[block] * s.block_size * s.kv_heads + head) * size; };
  const int64_t stride = s.kv_heads * size, bs = s.block_size, last = (length - 1) / bs;
  const int64_t place = start(last) + (length - 1) % bs * stride;
  scratch.resize(2 * group * size + group * length + size);
  float *q = scratch.data(), *o = q + group * size, *scores = o + group * size;
  uint16_t *turned = (uint16_t *)(scores + group * length); // two heads of bf16: normed, then rotated
  const auto prepare = [&](const uint16_t *x, const uint16_t *norm, uint16_t *to) {
    if (norm) norm_row(x, 0, norm, turned, 0, size, s.eps, BF16);
    rope_head(norm ? turned : x, 0, s.cos, s.sin, row * size, BF16, to, 0, size, BF16);
  };

  const uint16_t *from = qkv + row * (s.heads + 2 * s.kv_heads) * size;
  prepare(from + (s.heads + head) * size, layer.k_norm, layer.keys + place);
  memcpy(layer.values + place, from + (s.heads + s.kv_heads + head) * size, size * sizeof(uint16_t));
  for (int64_t g = 0; g < group; g++) {
    prepare(from + (head * group + g) * size, layer.q_norm, turned + size);
    for (int64_t i = 0; i < size; i++) q[g * size + i] = to_float(turned[size + i]);
  }
  const float scale = 1 / sqrtf(float(size));
  for (int64_t block = 0; block <= last; block++) {
    const uint16_t *key = layer.keys + start(block);
    for (int64_t l = block * bs; l < std::min(length, (block + 1) * bs); l++, key += stride)
      for (int64_t g = 0; g < group; g++) scores[g * length + l] = dot(q + g * size, key, size) * scale;
  }
  std::fill(o, o + group * size, 0.0f);
  for (int64_t g = 0; g < group; g++) {
    const float inverse = 1 / exponentials(scores + g * length, length);
    for (int64_t l = 0; l < length; l++) scores[g * length + l] *= inverse;
  }
  for (int64_t block = 0; block <= last; block++) {
    const uint16_t *value = layer.values + start(block);
    for (int64_t l = block * bs; l < std::min(length, (block + 1) * bs); l++, value += stride)
      for (int64_t g = 0; g < group; g++) add(o + g * size, scores[g * length + l], value, size);
  }
  uint16_t *to = mixed + (row * s.heads + head * group) * size;
  for (int64_t i = 0; i < group * size; i++) to[i] = to_bf16(o[i]);
}

// hidden += out, each rounded
inline void add_row(uint16_t *hidden, const uint16_t *out, int64_t size) {
  int64_t i = 0;
  for (; i + 16 <= size; i += 16) put16(hidden, BF16, i, get16(hidden, BF16, i) + get16(out, BF16, i));
  for (; i < size; i++) put(hidden, BF16, i, get(hidden, BF16, i) + get(out, BF16, i));
}

// The whole step, by every thread of a team.
void decode(const Layer *layers, int64_t num_layers, const Step &s, Buffers &b) {
  const int64_t width = s.width, items = s.rows * s.kv_heads;
  std::vector<float> scratch;
  const auto add_and_norm = [&](const uint16_t *out, const uint16_t *weight, uint16_t *to) {
#pragma omp for schedule(static)
    for (int64_t row = 0; row < s.rows; row++) {
      if (out) add_row(s.hidden + row * width, out + row * width, width);
      norm_row(s.hidden, row * width, weight, to, row * width, width, s.eps, BF16);
    }
  };
  for (int64_t i = 0; i < num_layers; i++) {
    const Layer &layer = layers[i];
    add_and_norm(i ? b.out.data() : nullptr, layer.input_norm, b.normed.data());
    multiply_in_team(layer.qkv, 3, b.normed.data(), BF16, s.rows, b.qkv.data(), b.scratch);
#pragma omp for schedule(dynamic, 1)
    for (int64_t item = 0; item < items; item++)
      attend(layer, s, item / s.kv_heads, item % s.kv_heads, b.qkv.data(), b.mixed.data(), scratch);
    multiply_in_team(&layer.out, 1, b.mixed.data(), BF16, s.rows, b.out.data(), b.scratch);
    add_and_norm(b.out.data(), layer.post_norm, b.normed.data());
    multiply_in_team(layer.gate_up, 2, b.normed.data(), BF16, s.rows, b.gate_up.data(), b.scratch);
    constexpr int64_t PART = 512;
    const int64_t parts = over(s.inner, PART);
#pragma omp for schedule(static)
    for (int64_t part = 0; part < s.rows * parts; part++) {
      const int64_t row = part / parts, first = part % parts * PART, count = std::min(PART, s.inner - first);
      const uint16_t *gate = b.gate_up.data() + row * 2 * s.inner;
      silu_mul_row(gate, gate + s.inner, first, b.inner.data(), row * s.inner + first, count, BF16);
    }
    multiply_in_team(&layer.down, 1, b.inner.data(), BF16, s.rows, b.out.data(), b.scratch);
  }
  add_and_norm(num_layers ? b.out.data() : nullptr, s.final_norm, s.hidden);
}

} // namespace

extern "C" void qvl_decode(const Layer *layers, int64_t num_layers, const Step *step, int32_t num_threads) {
  Buffers buffers(*step);
  for (int64_t i = 0; i < num_layers; i++)
    for (const Matrix *w : {&layers[i].qkv[0], &layers[i].out, &layers[i].gate_up[0], &layers[i].down})
      buffers.scratch.reserve(*w, step->rows);
#pragma omp parallel num_threads(num_threads)
  decode(layers, num_layers, *step, buffers);
  done(buffers.scratch);
}
