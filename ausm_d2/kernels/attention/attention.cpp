// Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
//
// Attention on the CPU, forward, without a mask: softmax(q k^T * scale) v, for blocks of queries and keys, so that the
// scores stay in cache (online softmax, FlashAttention, arXiv 2205.14135). Called from cpu.py.
//
// B: frames; H: heads; Q: queries; K: keys; D: width of a head, a multiple of L; L: lanes of a vector.
//
// Both products work on 32-bit words: one float, or two neighbouring bfloat16, which AVX512_BF16 multiplies and adds in
// one instruction. Keys and values are packed once, so that whole vectors of words are read.

#include "../vector.h"

namespace {

template <typename T>
constexpr int kPerWord = 4 / sizeof(T);

constexpr int kRows = 6;                   // kRows x kColumns accumulators just fit into the registers
constexpr int kColumns = L == 16 ? 4 : 2;
constexpr int kTile = kColumns * L;        // keys per tile
constexpr int kQueries = 4 * kRows;        // queries per pass over the keys
constexpr int64_t kKeys = 8 * kTile;       // keys whose scores are in cache at a time

struct Place {  // strides in elements
  int64_t image, head, row;
};

struct Attention {
  int64_t B, H, Q, K, D;
  Place q, k, v, out;
  float scale;
  int32_t threads;
};

// Offset of head `plane % H` of frame `plane / H`.
int64_t start(const Place& place, int64_t H, int64_t plane) {
  return plane / H * place.image + plane % H * place.head;
}

inline Vec multiply_add(float, uint32_t a, Vec b, Vec sum) {
  float number;
  std::memcpy(&number, &a, sizeof number);
  return number * b + sum;
}
#if defined(__AVX512BF16__)
inline Vec multiply_add(BFloat16, uint32_t a, Vec b, Vec sum) {
  return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_epi32(int(a)), (__m512bh)b);
}
#endif

// out = a b, or out += a b (kAdd). a: (kRows, words), b: (words, C * L), out: (kRows, C * L), each with its row stride.
template <typename T, int C, bool kAdd>
inline void multiply(const uint32_t* a, int64_t a_row, const float* b, int64_t b_row, int64_t words, float* out,
                     int64_t out_row) {
  Vec sums[kRows][C];
  for (int r = 0; r < kRows; ++r)
    for (int c = 0; c < C; ++c) sums[r][c] = kAdd ? load(out + r * out_row + c * L) : Vec{};
  for (int64_t w = 0; w < words; ++w) {
    Vec right[C];
    for (int c = 0; c < C; ++c) right[c] = load(b + w * b_row + c * L);
    for (int r = 0; r < kRows; ++r)
      for (int c = 0; c < C; ++c) sums[r][c] = multiply_add(T{}, a[r * a_row + w], right[c], sums[r][c]);
  }
  for (int r = 0; r < kRows; ++r)
    for (int c = 0; c < C; ++c) store(out + r * out_row + c * L, sums[r][c]);
}

// Packs keys as (tiles, words of a row, kTile) and values as (words of a column, D). Padding behind the last key is not
// written.
template <typename T>
void pack(const Attention& a, const T* k, const T* v, float* packed_k, float* packed_v) {
  const int64_t words = a.D / kPerWord<T>;
  T* column = reinterpret_cast<T*>(packed_v);
  for (int64_t j = 0; j < a.K; ++j) {
    float* words_of_key = packed_k + j / kTile * kTile * words + j % kTile;
    for (int64_t w = 0; w < words; ++w)
      std::memcpy(words_of_key + w * kTile, k + j * a.k.row + w * kPerWord<T>, sizeof(float));
    T* row = column + j / kPerWord<T> * a.D * kPerWord<T> + j % kPerWord<T>;
    for (int64_t d = 0; d < a.D; ++d) row[d * kPerWord<T>] = v[j * a.v.row + d];
  }
}

// Running softmax of one query over the keys so far.
struct Softmax {
  float highest = -__builtin_inff(), total = 0;  // largest score times log2(e); sum of weights
};

// Turns the scores (n) of further keys into weights, in place, and rescales `out` (D) to the new maximum.
template <typename T>
inline void weigh(float* scores, int64_t n, float scale, Softmax& softmax, float* out, int64_t D) {
  Vec high = Vec{} + softmax.highest;
  for (int64_t j = 0; j < n; j += L) {
    const Vec score = load(scores + j) * scale;
    high = score > high ? score : high;
  }
  float highest = high[0];
  for (int i = 1; i < L; ++i) highest = high[i] > highest ? high[i] : highest;
  const float base = highest == -__builtin_inff() ? 0 : highest;  // all scores so far are -inf
  const float fading = exp2(Vec{} + (softmax.highest - base))[0];
  T* weights = reinterpret_cast<T*>(scores);
  Vec total = {};
  for (int64_t j = 0; j < n; j += L) {
    const Vec weight = exp2(load(scores + j) * scale - base);
    total += weight;
    store(weights + j, weight);
  }
  softmax = {highest, softmax.total * fading + sum(total)};
  for (int64_t d = 0; d < D; d += L) store(out + d, load(out + d) * fading);
}

template <typename T, int C>
inline int64_t add_values(const uint32_t* weights, int64_t row, const float* values, int64_t words, float* out,
                          int64_t D, int64_t d) {
  for (; d + C * L <= D; d += C * L) multiply<T, C, true>(weights, row, values + d, D, words, out + d, D);
  return d;
}

// Up to kQueries queries of one head. q: (kQueries, D), zero-padded; out: same shape, zero on entry.
template <typename T>
void attend(const Attention& a, const T* q, int64_t count, const float* k, const float* v, int64_t keys, float* scores,
            float* out) {
  const int64_t words = a.D / kPerWord<T>, row = keys < kKeys ? keys : kKeys;
  Softmax softmax[kQueries];
  for (int64_t first = 0; first < keys; first += kKeys) {
    const int64_t n = keys - first < kKeys ? keys - first : kKeys;
    for (int64_t j = 0; j < n; j += kTile)
      for (int64_t i = 0; i < count; i += kRows)
        multiply<T, kColumns, false>(reinterpret_cast<const uint32_t*>(q + i * a.D), words, k + (first + j) * words,
                                     kTile, words, scores + i * row + j, row);
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t j = a.K - first; j < n; ++j) scores[i * row + j] = -__builtin_inff();
      weigh<T>(scores + i * row, n, a.scale * kLog2e, softmax[i], out + i * a.D, a.D);
    }
    for (int64_t i = 0; i < count; i += kRows) {
      const uint32_t* weights = reinterpret_cast<const uint32_t*>(scores + i * row);
      const float* values = v + first / kPerWord<T> * a.D;
      const int64_t depth = n / kPerWord<T>;
      int64_t d = add_values<T, kColumns>(weights, row, values, depth, out + i * a.D, a.D, 0);
      d = add_values<T, 2>(weights, row, values, depth, out + i * a.D, a.D, d);
      add_values<T, 1>(weights, row, values, depth, out + i * a.D, a.D, d);
    }
  }
  for (int64_t i = 0; i < count; ++i)
    for (int64_t d = 0; d < a.D; d += L) store(out + i * a.D + d, load(out + i * a.D + d) / softmax[i].total);
}

template <typename T>
bool attention(const Attention& a, const T* q, const T* k, const T* v, T* out) {
  const int64_t planes = a.B * a.H, blocks = (a.Q + kQueries - 1) / kQueries, keys = (a.K + kTile - 1) / kTile * kTile;
  const int64_t size = keys * (a.D / kPerWord<T>);  // words of the packed keys of a head, and of its values
  Scratch packed(planes * 2 * size / L);  // zero-initialised: padding behind the last key
  if (!packed) return false;
  float* memory = reinterpret_cast<float*>(packed.take(planes * 2 * size / L));
  const int threads = planes * blocks < a.threads ? int(planes * blocks) : a.threads;
#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(dynamic, 1)
    for (int64_t plane = 0; plane < planes; ++plane)
      pack(a, k + start(a.k, a.H, plane), v + start(a.v, a.H, plane), memory + 2 * plane * size,
           memory + (2 * plane + 1) * size);
    Scratch scratch(kQueries * (2 * a.D + kKeys) / L);
    T* queries = reinterpret_cast<T*>(scratch.take(kQueries * a.D / L));
    float* sums = reinterpret_cast<float*>(scratch.take(kQueries * a.D / L));
    float* scores = reinterpret_cast<float*>(scratch.take(kQueries * kKeys / L));
#pragma omp for schedule(dynamic, 1)
    for (int64_t block = 0; block < planes * blocks; ++block) {
      const int64_t plane = block / blocks, first = block % blocks * kQueries;
      const int64_t count = a.Q - first < kQueries ? a.Q - first : kQueries;
      std::memset(static_cast<void*>(queries + count * a.D), 0, (kQueries - count) * a.D * sizeof(T));
      std::memset(sums, 0, kQueries * a.D * sizeof(float));
      const T* from = q + start(a.q, a.H, plane) + first * a.q.row;
      T* to = out + start(a.out, a.H, plane) + first * a.out.row;
      for (int64_t i = 0; i < count; ++i)
        std::memcpy(static_cast<void*>(queries + i * a.D), from + i * a.q.row, a.D * sizeof(T));
      attend<T>(a, queries, count, memory + 2 * plane * size, memory + (2 * plane + 1) * size, keys, scores, sums);
      for (int64_t i = 0; i < count; ++i)
        for (int64_t d = 0; d < a.D; d += L) store(to + i * a.out.row + d, load(sums + i * a.D + d));
    }
  }
  return true;
}

}  // namespace

extern "C" {
// Whether this is faster than PyTorch on this processor, for heads of width D in bfloat16 or float. Not with short
// vectors, nor for bfloat16 with AMX, which PyTorch uses.
int32_t ausm_attention_fits(int64_t D, int32_t bfloat16) {
#if defined(__AVX512BF16__) && !defined(__AMX_BF16__)
  const bool knows_bfloat16 = true;
#else
  const bool knows_bfloat16 = false;
#endif
  return L >= 8 && D % L == 0 && (knows_bfloat16 || !bfloat16);
}

// Returns false if memory for the packed keys and values cannot be allocated.
int32_t ausm_attention(const Attention* a, const void* q, const void* k, const void* v, void* out, int32_t bfloat16) {
#if defined(__AVX512BF16__)
  using T = BFloat16;
  if (bfloat16)
    return attention(*a, static_cast<const T*>(q), static_cast<const T*>(k), static_cast<const T*>(v),
                     static_cast<T*>(out));
#endif
  return attention(*a, static_cast<const float*>(q), static_cast<const float*>(k), static_cast<const float*>(v),
                   static_cast<float*>(out));
}
}
