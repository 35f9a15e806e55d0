// Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
//
// Shared by the C++ kernels of scan and causal convolution: vector loads and stores, activations, threading.
//
// Sequences are divided among threads. Within a sequence, one block of L neighbouring channels at a time is processed
// through all frames, so that every operation is on whole vectors. Activations are float or bfloat16; intermediate
// values are float. No PyTorch header is included: the caller passes addresses and strides (structs.py).
//
// N: sequences; T: frames; E: inner channels; L: lanes of a vector.

#pragma once

#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <utility>

#include "vector.h"

namespace {

typedef uint64_t Quad __attribute__((vector_size(8 * L)));

// The last block of channels may have fewer than L of them.
template <typename T>
inline Vec load(const T* p, int count) {
  if (count == L) return load(p);
  T padded[L] = {};
  std::memcpy(padded, p, count * sizeof(T));
  return load(padded);
}
template <typename T>
inline void store(T* p, Vec v, int count) {
  if (count == L) return store(p, v);
  T padded[L];
  store(padded, v);
  std::memcpy(p, padded, count * sizeof(T));
}

inline float to_float(float x) { return x; }
inline float to_float(BFloat16 x) {
  const uint32_t bits = uint32_t(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
inline void from_float(float* p, float x) { *p = x; }
inline void from_float(BFloat16* p, float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  p->bits = uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

constexpr float kLn2 = 0.693147180559945f;

inline Vec sigmoid(Vec x) { return 1.f / (1.f + exp2(-kLog2e * x)); }

// log(1 + e^x) = max(x, 0) + log1p(e^-|x|), and log1p(e) = 2 atanh(e / (2 + e)): accurate relative to the result.
inline Vec softplus(Vec x) {
  const Vec positive = x > 0.f ? x : Vec{};
  const Vec e = exp2(kLog2e * (x - 2.f * positive));
  const Vec s = e / (2.f + e);
  const Vec q = s * s;
  Vec p = 1.f / 15 * q + 1.f / 13;
  p = p * q + 1.f / 11;
  p = p * q + 1.f / 9;
  p = p * q + 1.f / 7;
  p = p * q + 1.f / 5;
  p = p * q + 1.f / 3;
  p = p * q + 1.f;
  return positive + 2.f * s * p;
}

#if defined(__AVX512F__)
// Transposes 4 x 4 numbers in each 128-bit quarter of the vectors.
inline void transpose_quarters(__m512 v[4]) {
  const __m512 a = _mm512_unpacklo_ps(v[0], v[1]), b = _mm512_unpackhi_ps(v[0], v[1]);
  const __m512 c = _mm512_unpacklo_ps(v[2], v[3]), d = _mm512_unpackhi_ps(v[2], v[3]);
  v[0] = _mm512_shuffle_ps(a, c, 0x44), v[1] = _mm512_shuffle_ps(a, c, 0xee);
  v[2] = _mm512_shuffle_ps(b, d, 0x44), v[3] = _mm512_shuffle_ps(b, d, 0xee);
}
#elif defined(__AVX2__)
// The same in each half.
inline void transpose_halves(__m256 v[4]) {
  const __m256 a = _mm256_unpacklo_ps(v[0], v[1]), b = _mm256_unpackhi_ps(v[0], v[1]);
  const __m256 c = _mm256_unpacklo_ps(v[2], v[3]), d = _mm256_unpackhi_ps(v[2], v[3]);
  v[0] = _mm256_shuffle_ps(a, c, 0x44), v[1] = _mm256_shuffle_ps(a, c, 0xee);
  v[2] = _mm256_shuffle_ps(b, d, 0x44), v[3] = _mm256_shuffle_ps(b, d, 0xee);
}
#endif

// Converts between L rows of `columns` numbers in memory and `columns` vectors.
template <typename T>
inline void load_transposed(const T* p, Vec* v, int64_t columns, int count) {
  for (int64_t i = 0; i < columns; ++i) {
    float lane[L] = {};
    for (int j = 0; j < count; ++j) lane[j] = to_float(p[j * columns + i]);
    v[i] = load(lane);
  }
}
template <typename T>
inline void store_transposed(T* p, const Vec* v, int64_t columns, int count) {
  for (int64_t i = 0; i < columns; ++i) {
    float lane[L];
    store(lane, v[i]);
    for (int j = 0; j < count; ++j) from_float(p + j * columns + i, lane[j]);
  }
}
// Four columns of bfloat16: a row is one 64-bit integer.
inline void load_transposed(const BFloat16* p, Vec* v, int64_t columns, int count) {
  if (count < L || columns != 4) return load_transposed<BFloat16>(p, v, columns, count);
  Quad rows;
  std::memcpy(&rows, p, sizeof rows);
  for (int i = 0; i < 4; ++i) v[i] = (Vec)(__builtin_convertvector(rows >> (16 * i), Word) << 16);
}
inline void store_transposed(BFloat16* p, const Vec* v, int64_t columns, int count) {
  if (count < L || columns != 4) return store_transposed<BFloat16>(p, v, columns, count);
  Quad rows = {};
  for (int i = 0; i < 4; ++i) rows |= __builtin_convertvector(bfloat16_bits(v[i]), Quad) << (16 * i);
  std::memcpy(p, &rows, sizeof rows);
}
#if defined(__AVX512F__)
inline void load_transposed(const float* p, Vec* v, int64_t columns, int count) {
  if (count < L || columns % 4) return load_transposed<float>(p, v, columns, count);
  for (int64_t i = 0; i < columns; i += 4) {
    __m512 tile[4];
    for (int r = 0; r < 4; ++r) {
      const float* q = p + r * columns + i;  // rows r, r + 4, r + 8, r + 12 in the quarters
      tile[r] = _mm512_castps128_ps512(_mm_loadu_ps(q));
      tile[r] = _mm512_insertf32x4(tile[r], _mm_loadu_ps(q + 4 * columns), 1);
      tile[r] = _mm512_insertf32x4(tile[r], _mm_loadu_ps(q + 8 * columns), 2);
      tile[r] = _mm512_insertf32x4(tile[r], _mm_loadu_ps(q + 12 * columns), 3);
    }
    transpose_quarters(tile);
    for (int r = 0; r < 4; ++r) v[i + r] = tile[r];
  }
}
inline void store_transposed(float* p, const Vec* v, int64_t columns, int count) {
  if (count < L || columns % 4) return store_transposed<float>(p, v, columns, count);
  for (int64_t i = 0; i < columns; i += 4) {
    __m512 tile[4] = {v[i], v[i + 1], v[i + 2], v[i + 3]};
    transpose_quarters(tile);
    for (int r = 0; r < 4; ++r) {
      float* q = p + r * columns + i;
      _mm_storeu_ps(q, _mm512_castps512_ps128(tile[r]));
      _mm_storeu_ps(q + 4 * columns, _mm512_extractf32x4_ps(tile[r], 1));
      _mm_storeu_ps(q + 8 * columns, _mm512_extractf32x4_ps(tile[r], 2));
      _mm_storeu_ps(q + 12 * columns, _mm512_extractf32x4_ps(tile[r], 3));
    }
  }
}
#elif defined(__AVX2__)
inline void load_transposed(const float* p, Vec* v, int64_t columns, int count) {
  if (count < L || columns % 4) return load_transposed<float>(p, v, columns, count);
  for (int64_t i = 0; i < columns; i += 4) {
    __m256 tile[4];
    for (int r = 0; r < 4; ++r) {
      const float* q = p + r * columns + i;  // rows r and r + 4 in the halves
      tile[r] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(q)), _mm_loadu_ps(q + 4 * columns), 1);
    }
    transpose_halves(tile);
    for (int r = 0; r < 4; ++r) v[i + r] = tile[r];
  }
}
inline void store_transposed(float* p, const Vec* v, int64_t columns, int count) {
  if (count < L || columns % 4) return store_transposed<float>(p, v, columns, count);
  for (int64_t i = 0; i < columns; i += 4) {
    __m256 tile[4] = {v[i], v[i + 1], v[i + 2], v[i + 3]};
    transpose_halves(tile);
    for (int r = 0; r < 4; ++r) {
      float* q = p + r * columns + i;
      _mm_storeu_ps(q, _mm256_castps256_ps128(tile[r]));
      _mm_storeu_ps(q + 4 * columns, _mm256_extractf128_ps(tile[r], 1));
    }
  }
}
#endif

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define AUSM_SHUFFLES 1
#endif
#endif

#if defined(AUSM_SHUFFLES)
// Shuffle indices into two vectors a, b (lane i of b is L + i): chunks of `width` lanes, alternating between a and b,
// from the first or second halves of groups of lanes. Groups of four do not cross 128 bits.
constexpr int source(int lane, int width, bool second) {
  const int group = width < 4 ? 4 : 2 * width, chunk = lane % group / width;
  return lane / group * group + (second ? group / 2 : 0) + chunk / 2 * width + lane % width + chunk % 2 * L;
}
template <int kWidth, bool kSecond, int... kLanes>
inline Vec alternate(Vec a, Vec b, std::integer_sequence<int, kLanes...>) {
  return __builtin_shufflevector(a, b, source(kLanes, kWidth, kSecond)...);
}

// Lane i is the sum of the lanes of vector(first + i), for i < kCount, a power of two up to L; the other lanes repeat
// it.
template <int kCount, typename Vectors>
inline Vec lane_sums(const Vectors& vector, int first = 0) {
  if constexpr (kCount == 1) {
    return vector(first);
  } else {
    constexpr int half = kCount / 2;
    constexpr auto lanes = std::make_integer_sequence<int, L>{};
    const Vec a = lane_sums<half>(vector, first), b = lane_sums<half>(vector, first + half);
    return alternate<half, false>(a, b, lanes) + alternate<half, true>(a, b, lanes);
  }
}
#else
template <int kCount, typename Vectors>
inline Vec lane_sums(const Vectors& vector) {
  Vec sums = {};
  for (int i = 0; i < kCount; ++i) sums[i] = sum(vector(i));
  return sums;
}
#endif

// An activation: E or S contiguous numbers per row, with strides (in elements) over frames and sequences.
struct Rows {
  void* data;
  int64_t sequence, frame;
  template <typename T>
  T* at(int64_t n, int64_t t) const {
    return static_cast<T*>(data) + n * sequence + t * frame;
  }
  // Rows of successive frames are far apart, so the hardware prefetcher does not help.
  template <typename T>
  void prefetch(int64_t n, int64_t t, int64_t e) const {
    if (data) __builtin_prefetch(at<T>(n, t) + e, 1);
  }
};

// Calls body(part, begin, end) for equal parts of all sequences, scheduled dynamically. Sums over sequences are per
// part, so results do not depend on the schedule.
template <typename Arguments, typename Body>
void parallel(const Arguments& a, Body body) {
#pragma omp parallel for num_threads(a.threads) schedule(dynamic, 1)
  for (int part = 0; part < a.parts; ++part) body(part, a.N * part / a.parts, a.N * (part + 1) / a.parts);
}

}  // namespace
