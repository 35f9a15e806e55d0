// Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
//
// Linear layers with bias, clamp and sum: y = clamp(x w + bias) + add, for weights that were packed before.
//
// G: independent products; M: rows; K: inputs; N: outputs; L: lanes of a vector. The weights of a product are packed
// as panels of kPanel outputs, each (K, kPanel), the last one only as wide as whole vectors need.

#pragma once

#include "../vector.h"

namespace {

constexpr int kRows = 6;  // kRows x kColumns sums just fit into the registers
constexpr int kColumns = L == 16 ? 4 : 2;
constexpr int kPanel = kColumns * L;
constexpr int64_t kBlock = 32768;  // numbers of x that are multiplied with all panels before the next: half of L2

struct Linear {
  int64_t G, M, K, N;
  float low, high;
  int32_t threads, reserved;
  const float *x, *packed, *bias, *add;  // (G, M, K), (G, panels), (N) or null, (G, M, N) or null
  float* y;                              // (G, M, N)
};

// Writes R rows and C vectors of sums; of the outputs from n on there are `count`.
template <int R, int C>
inline void write_part(const Linear& a, const Vec (&sums)[R][C], int64_t place, int64_t count) {
  for (int r = 0; r < R; ++r, place += a.N)
    for (int c = 0; c < C; ++c) {
      const int64_t width = count - c * L < L ? count - c * L : L;
      Vec v = sums[r][c], more = {};
      if (a.add) std::memcpy(&more, a.add + place + c * L, width * sizeof(float));
      v += more;
      std::memcpy(a.y + place + c * L, &v, width * sizeof(float));
    }
}

// R rows and C vectors of outputs.
template <int R, int C>
inline void block(const Linear& a, const float* x, const float* packed, int64_t m, int64_t n) {
  const int64_t count = a.N - n, K = a.K, place = m * a.N + n;
  const bool whole = count >= C * L;  // else the last vector is written in part
  x += m * K;
  Vec sums[R][C] = {};
  for (int64_t k = 0; k < K; ++k) {
    Vec right[C];
    for (int c = 0; c < C; ++c) right[c] = load(packed + (k * C + c) * L);
    for (int r = 0; r < R; ++r) {
      const float left = x[r * K + k];
      for (int c = 0; c < C; ++c) sums[r][c] = left * right[c] + sums[r][c];
    }
  }
  if (a.bias) {
    float padded[C * L] = {};
    if (!whole) std::memcpy(padded, a.bias + n, count * sizeof(float));
    for (int c = 0; c < C; ++c) {
      const Vec bias = load((whole ? a.bias + n : padded) + c * L);
      for (int r = 0; r < R; ++r) sums[r][c] += bias;
    }
  }
  if (a.low > -__builtin_inff() || a.high < __builtin_inff()) {
    const Vec low = Vec{} + a.low, high = Vec{} + a.high;
    for (int r = 0; r < R; ++r)
      for (int c = 0; c < C; ++c) sums[r][c] = clamp(sums[r][c], low, high);
  }
  if (!whole) return write_part<R, C>(a, sums, place, count);
  for (int r = 0; r < R; ++r)
    for (int c = 0; c < C; ++c) {
      const int64_t to = place + r * a.N + c * L;
      store(a.y + to, a.add ? sums[r][c] + load(a.add + to) : sums[r][c]);
    }
}

// Rows [first, end) and one panel of C vectors.
template <int C>
void panel(const Linear& a, const float* x, const float* packed, int64_t n, int64_t first, int64_t end) {
  int64_t m = first;
  for (; m + kRows <= end; m += kRows) block<kRows, C>(a, x, packed, m, n);
  switch (end - m) {
    case 5: block<5, C>(a, x, packed, m, n); break;
    case 4: block<4, C>(a, x, packed, m, n); break;
    case 3: block<3, C>(a, x, packed, m, n); break;
    case 2: block<2, C>(a, x, packed, m, n); break;
    case 1: block<1, C>(a, x, packed, m, n); break;
  }
}

inline int64_t vectors(int64_t n) { return (n + L - 1) / L; }

// Floats of the packed weights of one product.
inline int64_t packed_size(int64_t K, int64_t N) { return vectors(N) * L * K; }

// Rows [first, end) of one product (G = 1), in blocks that stay in the cache.
inline void multiply(const Linear& a, int64_t first, int64_t end) {
  const int64_t size = kBlock / a.K / kRows * kRows, rows = size < kRows ? kRows : size;
  for (; first < end; first += rows) {
    const int64_t last = first + rows < end ? first + rows : end;
    const float* packed = a.packed;
    for (int64_t n = 0; n < a.N; n += kPanel) {
      switch (vectors(a.N - n) < kColumns ? vectors(a.N - n) : kColumns) {
        case 1: panel<1>(a, a.x, packed, n, first, last); break;
        case 2: panel<2>(a, a.x, packed, n, first, last); break;
#if defined(__AVX512F__)
        case 3: panel<3>(a, a.x, packed, n, first, last); break;
        default: panel<4>(a, a.x, packed, n, first, last);
#endif
      }
      packed += kPanel * a.K;
    }
  }
}

}  // namespace
