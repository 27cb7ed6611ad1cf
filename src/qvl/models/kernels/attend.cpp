// Softmax attention of many bf16 queries: tile by tile of keys, so that scores are never held whole (FlashAttention-2,
// Dao 2023, algorithm 1). Sums and what is normalised are fp32. Where the processor multiplies bf16, weights are rounded
// to it before they multiply the values, as PyTorch's own does; elsewhere everything is widened to fp32.
// Legend: N query heads, K key/value heads, G = N / K, H head dim.

#include <cmath>

#include "matrix.h"

using namespace qvl;

namespace {

// A product's operands are rows of items: PER neighbours along what is summed over. A tile of sums, HIGH rows x WIDE
// vectors, and its operands have to fit the registers.
#ifdef QVL_BF16
constexpr bool IN_BF16 = true;
constexpr int HIGH = 6, WIDE = 4;
typedef uint32_t Item; // two bf16
typedef f32x16 Sums;
typedef Pairs<Sums> Items;
inline Items items(const Item *p) { return Items(p); }
inline Items spread(Item item) { return Items(item); }
#else
constexpr bool IN_BF16 = false;
typedef float Item;
#if defined(__AVX512F__)
constexpr int HIGH = 6, WIDE = 4;
typedef f32x16 Sums;
#else
constexpr int HIGH = 4, WIDE = 3;
typedef f32x8 Sums;
#endif
typedef Sums Items;
inline Items items(const Item *p) { return load<Sums>(p); }
inline Items spread(Item item) { return item - Sums{}; }
inline Sums dot(Sums acc, Items a, Items b) { return fused(a, b, acc); }
#endif
constexpr int64_t LANES = sizeof(Sums) / sizeof(float);
constexpr int64_t PER = sizeof(Item) / (IN_BF16 ? 2 : 4);
constexpr int64_t KEYS = 64;     // of a tile
constexpr int64_t AT_ONCE = 512; // queries x G that pass over packed keys together: they and their sums stay in the L2 cache

// Neighbouring queries of a sequence, and the first of its keys.
struct Span {
  int64_t query, num_queries; // rows of q and out
  int64_t key, num_keys;      // rows of keys and values, where `blocks` is null
  const int32_t *blocks;      // key l lies in row blocks[l / block_size] * block_size + l % block_size
};

struct Attention {
  int64_t heads, kv_heads, head_dim, block_size;
  int64_t query_row, key_row, value_row; // values from one row to the next; heads of a row lie side by side
  const uint16_t *queries;
  const void *keys, *values; // bf16, or e4m3 bytes
  uint16_t *out;             // (T, N, H)
  float scale;
  int32_t in_8_bits;
  int32_t causal; // query i of n sees all but the last n - 1 - i keys
};

// to (rows, lanes) = to * kept + a (rows, count items) times b (count, lanes); `kept` is a factor for each row, null: 0.
template <int R, int W>
inline void multiply(const Item *a, int64_t a_row, const Item *b, int64_t b_row, int64_t count, float *to,
                     int64_t to_row, const float *kept) {
  Sums acc[R][W];
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int w = 0; w < W; w++) acc[r][w] = kept ? load<Sums>(to + r * to_row + w * LANES) * kept[r] : Sums{};
  for (int64_t i = 0; i < count; i++) {
    Items line[W];
#pragma GCC unroll 8
    for (int w = 0; w < W; w++) line[w] = items(b + i * b_row + w * LANES);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      const Items item = spread(a[r * a_row + i]);
#pragma GCC unroll 8
      for (int w = 0; w < W; w++) acc[r][w] = dot(acc[r][w], item, line[w]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int w = 0; w < W; w++) store(to + r * to_row + w * LANES, acc[r][w]);
}

// The same over any number of lanes
template <int R>
inline void multiply(const Item *a, int64_t a_row, const Item *b, int64_t b_row, int64_t count, float *to,
                     int64_t to_row, int64_t lanes, const float *kept) {
  in_pieces<WIDE>(lanes / LANES, [&](int64_t first, auto wide) {
    multiply<R, wide>(a, a_row, b + first * LANES, b_row, count, to + first * LANES, to_row, kept);
  });
}

#ifdef QVL_BF16
inline u16x16 rounded(f32x16 x) { return (u16x16)_mm512_cvtneps_pbh((__m512)x); }
inline void put_weights(Item *to, Sums x) { store(to, rounded(x)); }
#else
inline u16x16 rounded(f32x16 x) { return narrowed(x); }
inline void put_weights(Item *to, Sums x) { store(to, x); }
#endif

inline void widen(float *to, const uint16_t *from, int64_t size) {
  int64_t i = 0;
  for (; i + 16 <= size; i += 16) store(to + i, widened(load<u16x16>(from + i)));
  for (; i < size; i++) to[i] = to_float(from[i]);
}

// bf16 of each byte of e4m3, exactly
struct FromE4m3 {
  uint16_t bits[256];
  FromE4m3() {
    for (int byte = 0; byte < 256; byte++) {
      const uint16_t half = (byte & 0x80) << 8 | (byte & 0x7f) << 7; // 2^-8 of it: fp8.cpp says why
      bits[byte] = (byte & 0x7f) == 0x7f ? 0x7fc0 : to_bf16(half_to_float(half) * 256);
    }
  }
};

// What a thread works in
struct Work {
  const Attention &at;
  const int64_t group, depth, width; // G; items of a head; H filled up to whole vectors
  Lines<Item> queries;         // (rows, depth)
  Lines<Item> keys;            // (depth, KEYS)
  Lines<Item> values;          // (KEYS / PER, width)
  Lines<float> sums;           // (rows, width): weights times values
  std::vector<float> most, total;    // (rows,): the largest score so far, the sum of weights
  std::vector<uint16_t> decoded;     // (4, H)
  float scores[HIGH * KEYS];
  Item weights[HIGH * KEYS / PER];

  explicit Work(const Attention &at, int64_t rows)
      : at(at), group(at.heads / at.kv_heads), depth(over(at.head_dim, PER)), width(over(at.head_dim, 16) * 16),
        queries(rows * depth), keys(depth * KEYS), values(KEYS / PER * width), sums(rows * width), most(rows),
        total(rows), decoded(4 * at.head_dim) {}

  int64_t row_of(const Span &span, int64_t key) const {
    return span.blocks ? span.blocks[key / at.block_size] * at.block_size + key % at.block_size : span.key + key;
  }

  // a head's values from `first` on; `space` holds them where they are decoded
  const uint16_t *head_of(const void *rows, int64_t first, uint16_t *space) const {
    if (!at.in_8_bits) return (const uint16_t *)rows + first;
    static const FromE4m3 table;
    for (int64_t i = 0; i < at.head_dim; i++) space[i] = table.bits[((const uint8_t *)rows)[first + i]];
    return space;
  }

  // `count` keys of one head from `first` on; the rest of the tile is filled up with zeros
  void pack(const Span &span, int64_t head, int64_t first, int64_t count) {
    const int64_t size = at.head_dim;
    if (count < KEYS) {
      std::fill(keys.begin(), keys.end(), 0);
      std::fill(values.begin(), values.end(), 0);
    }
    const std::vector<uint16_t> nothing(size); // beside the last key of an odd number
    for (int64_t l = 0; l < count; l += PER) {
      const uint16_t *value[2] = {nullptr, nothing.data()};
      for (int64_t j = 0; j < std::min(PER, count - l); j++) {
        const int64_t row = row_of(span, first + l + j);
        uint16_t *space = decoded.data() + 2 * j * size;
        const uint16_t *key = head_of(at.keys, row * at.key_row + head * size, space);
        value[j] = head_of(at.values, row * at.value_row + head * size, space + size);
        Item *to = keys.data() + l + j;
        if constexpr (IN_BF16) {
          for (int64_t i = 0; i < size / 2; i++) memcpy(to + i * KEYS, key + 2 * i, sizeof(Item));
          if (size % 2) to[size / 2 * KEYS] = key[size - 1];
        } else {
          for (int64_t i = 0; i < size; i++) to[i * KEYS] = to_float(key[i]);
        }
      }
      Item *to = values.data() + l / PER * width;
      if constexpr (IN_BF16) {
        int64_t i = 0;
        for (; i + 16 <= size; i += 16) {
          const u32x16 low = __builtin_convertvector(load<u16x16>(value[0] + i), u32x16);
          store(to + i, low | __builtin_convertvector(load<u16x16>(value[1] + i), u32x16) << 16);
        }
        for (; i < size; i++) to[i] = value[0][i] | uint32_t(value[1][i]) << 16;
      } else {
        widen((float *)to, value[0], size);
      }
    }
  }

  // scores (HIGH, KEYS) of rows → weights, and by what each row's sums so far are to be multiplied. `seen`: keys of
  // this tile that the row's query sees.
  void weigh(int64_t r, int64_t row, int64_t seen, float *kept) {
    constexpr int64_t PARTS = KEYS / LANES;
    float *from = scores + r * KEYS;
    Item *to = weights + r * KEYS / PER;
    if (seen < KEYS) std::fill(from + std::max<int64_t>(seen, 0), from + KEYS, -INFINITY);
    Sums score[PARTS], all = {};
    for (int64_t i = 0; i < PARTS; i++) score[i] = load<Sums>(from + i * LANES) * at.scale;
    Sums top = score[0];
    for (int64_t i = 1; i < PARTS; i++) top = larger(top, score[i]);
    const float before = most[row], now = std::max(before, largest(top));
    for (int64_t i = 0; i < PARTS; i++) {
      Sums e = exponential(score[i] - now);
      if (seen < KEYS) e = score[i] == -INFINITY ? Sums{} : e;
      all += e;
      put_weights(to + i * LANES / PER, e);
    }
    *kept = now == before ? 1 : before == -INFINITY ? 0 : exponential(before - now - Sums{})[0];
    most[row] = now;
    total[row] = total[row] * *kept + sum(all);
  }

  // One key/value head of `num` queries of a span from its `first` on
  void run(const Span &span, int64_t head, int64_t first, int64_t num) {
    const int64_t size = at.head_dim, rows = num * group;
    for (int64_t row = 0; row < rows; row++) {
      const int64_t from = (span.query + first + row / group) * at.query_row + (head * group + row % group) * size;
      Item *to = queries.data() + row * depth;
      to[depth - 1] = 0;
      if constexpr (IN_BF16)
        memcpy(to, at.queries + from, size * sizeof(uint16_t));
      else
        widen((float *)to, at.queries + from, size);
    }
    std::fill(sums.begin(), sums.end(), 0.0f);
    std::fill(most.begin(), most.end(), -INFINITY);
    std::fill(total.begin(), total.end(), 0.0f);
    const int64_t unseen = at.causal ? span.num_queries - 1 : 0; // keys that the span's first query doesn't see
    const auto seen = [&](int64_t query) { return span.num_keys - std::max<int64_t>(0, unseen - query); };
    const int64_t end = seen(first + num - 1);
    for (int64_t tile = 0; tile < end; tile += KEYS) {
      pack(span, head, tile, std::min(KEYS, end - tile));
      in_pieces<HIGH>(rows, [&](int64_t row, auto high) {
        if (seen(first + (row + high - 1) / group) <= tile) return;
        float kept[HIGH];
        multiply<high>(queries.data() + row * depth, depth, keys.data(), KEYS, depth, scores, KEYS, KEYS, nullptr);
        for (int64_t r = 0; r < high; r++) weigh(r, row + r, seen(first + (row + r) / group) - tile, kept + r);
        multiply<high>(weights, KEYS / PER, values.data(), width, KEYS / PER, sums.data() + row * width, width, width, kept);
      });
    }
    for (int64_t row = 0; row < rows; row++) {
      const int64_t to = (span.query + first + row / group) * at.heads + head * group + row % group;
      const float inverse = 1 / total[row];
      const float *from = sums.data() + row * width;
      int64_t i = 0;
      for (; i + 16 <= size; i += 16) store(at.out + to * size + i, rounded(load<f32x16>(from + i) * inverse));
      for (; i < size; i++) at.out[to * size + i] = to_bf16(from[i] * inverse);
    }
  }
};

struct Task {
  const Span *span;
  int64_t head, first, num;
};

} // namespace

extern "C" void qvl_attend(const Attention *attention, const Span *spans, int64_t count, int32_t num_threads) {
  const Attention &at = *attention;
  const int64_t most = std::max<int64_t>(1, AT_ONCE / (at.heads / at.kv_heads));
  std::vector<Task> tasks;
  int64_t largest_task = 0;
  for (const Span *span = spans; span < spans + count; span++)
    for (int64_t head = 0; head < at.kv_heads; head++)
      for (int64_t first = 0; first < span->num_queries; first += most) {
        tasks.push_back({span, head, first, std::min(most, span->num_queries - first)});
        largest_task = std::max(largest_task, tasks.back().num);
      }
#pragma omp parallel num_threads(num_threads)
  {
    Work work(at, largest_task * at.heads / at.kv_heads);
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < int64_t(tasks.size()); i++) {
      const auto [span, head, first, num] = tasks[i];
      work.run(*span, head, first, num);
    }
  }
}
