// Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
//
// Vectors of L float lanes, as wide as the processor supports; bfloat16 in memory. Included by the CPU kernels.

#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#if defined(__AVX__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int L = 16;
#elif defined(__AVX__)
constexpr int L = 8;
#else
constexpr int L = 4;
#endif
typedef float Vec __attribute__((vector_size(4 * L)));
typedef int32_t Int __attribute__((vector_size(4 * L)));
typedef uint32_t Word __attribute__((vector_size(4 * L)));
typedef uint16_t Half __attribute__((vector_size(2 * L)));

struct BFloat16 {
  uint16_t bits;
};

inline Vec load(const float* p) {
  Vec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline Vec load(const BFloat16* p) {
  Half h;
  std::memcpy(&h, p, sizeof h);
  return (Vec)(__builtin_convertvector(h, Word) << 16);
}
inline void store(float* p, Vec v) { std::memcpy(p, &v, sizeof v); }
inline Word bfloat16_bits(Vec v) {  // in the lower halves; to nearest, ties to even
  const Word w = (Word)v;
  return (w + 0x7fff + ((w >> 16) & 1)) >> 16;
}
inline void store(BFloat16* p, Vec v) {
  const Half h = __builtin_convertvector(bfloat16_bits(v), Half);
  std::memcpy(p, &h, sizeof h);
}

inline Vec clamp(Vec v, Vec low, Vec high) {  // NaN stays NaN
#if defined(__AVX512F__)
  return _mm512_min_ps(high, _mm512_max_ps(low, v));
#elif defined(__AVX__)
  return _mm256_min_ps(high, _mm256_max_ps(low, v));
#else
  v = v < low ? low : v;
  return v > high ? high : v;
#endif
}

inline float sum(Vec v) {
  float total = 0;
  for (int i = 0; i < L; ++i) total += v[i];
  return total;
}

constexpr float kLog2e = 1.44269504088896f;

// 2^x; relative error below 2e-7 (a minimax polynomial on [-1/2, 1/2], exact at 0).
inline Vec exp2(Vec x) {
#if defined(__AVX512F__)
  const Vec whole = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  x = clamp(x, Vec{} - 126.f, Vec{} + 126.f);
  constexpr float magic = 12582912.f;  // 1.5 * 2^23: adding it rounds to an integer in the low bits
  const Vec shifted = x + magic, whole = shifted - magic;
#endif
  const Vec r = x - whole;
  Vec p = 0.001326472731307149f * r + 0.009671512991189957f;
  p = p * r + 0.05550733581185341f;
  p = p * r + 0.24022242426872253f;
  p = p * r + 0.6931470036506653f;
  p = p * r + 1.f;
#if defined(__AVX512F__)
  return _mm512_scalef_ps(p, whole);
#else
  return (Vec)((Int)p + ((Int)shifted << 23));
#endif
}

// Scratch memory of one part, in vectors, zero-initialised.
class Scratch {
 public:
  explicit Scratch(int64_t vectors)
      : data_(static_cast<Vec*>(std::aligned_alloc(64, round_up(vectors)))), next_(data_) {
    if (data_) std::memset(static_cast<void*>(data_), 0, round_up(vectors));
  }
  ~Scratch() { std::free(data_); }
  explicit operator bool() const { return data_; }  // whether the allocation succeeded
  Vec* take(int64_t vectors) {
    Vec* p = next_;
    next_ += vectors;
    return p;
  }

 private:
  static size_t round_up(int64_t vectors) { return (vectors * sizeof(Vec) + 63) / 64 * 64; }
  Vec *data_, *next_;
};

}  // namespace
