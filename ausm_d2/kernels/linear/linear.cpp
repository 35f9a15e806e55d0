// Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
//
// Linear layers with bias and clamp on the CPU, forward: y = clamp(x w + bias), for weights that were packed before.
// Called from cpu.py.
//
// G: independent products; M: rows; K: inputs; N: outputs; L: lanes of a vector. The weights of a product are packed
// as panels of kPanel outputs, each (K, kPanel), the last one only as wide as whole vectors need.

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
  const float *x, *packed, *bias;  // (G, M, K), (G, panels), (N) or null
  float* y;                        // (G, M, N)
};

inline Vec clamp(Vec v, Vec low, Vec high) {
  v = v < low ? low : v;
  return v > high ? high : v;
}

// R rows and C vectors of outputs, of which `count` are written.
template <int R, int C>
inline void block(const Linear& a, const float* x, const float* packed, const float* bias, float* y, int64_t count) {
  Vec sums[R][C];
  float padded[C * L] = {};
  if (bias) std::memcpy(padded, bias, count * sizeof(float));
  for (int c = 0; c < C; ++c)
    for (int r = 0; r < R; ++r) sums[r][c] = load(padded + c * L);
  for (int64_t k = 0; k < a.K; ++k) {
    Vec right[C];
    for (int c = 0; c < C; ++c) right[c] = load(packed + (k * C + c) * L);
    for (int r = 0; r < R; ++r) {
      const float left = x[r * a.K + k];
      for (int c = 0; c < C; ++c) sums[r][c] = left * right[c] + sums[r][c];
    }
  }
  const Vec low = Vec{} + a.low, high = Vec{} + a.high;
  for (int r = 0; r < R; ++r) {
    float* to = y + r * a.N;
    for (int c = 0; c < C; ++c) {
      const Vec v = clamp(sums[r][c], low, high);
      if ((c + 1) * L <= count)
        store(to + c * L, v);
      else
        std::memcpy(to + c * L, &v, (count - c * L) * sizeof(float));
    }
  }
}

// Rows [first, end) and one panel of C vectors.
template <int C>
void panel(const Linear& a, const float* x, const float* packed, int64_t n, float* y, int64_t first, int64_t end) {
  const float* bias = a.bias ? a.bias + n : nullptr;
  const int64_t count = a.N - n < C * L ? a.N - n : C * L;
  int64_t m = first;
  for (; m + kRows <= end; m += kRows) block<kRows, C>(a, x + m * a.K, packed, bias, y + m * a.N + n, count);
  for (; m < end; ++m) block<1, C>(a, x + m * a.K, packed, bias, y + m * a.N + n, count);
}

inline int64_t vectors(int64_t n) { return (n + L - 1) / L; }

}  // namespace

extern "C" {
int32_t ausm_linear_lanes() { return L; }

// Floats of the packed weights of one product.
int64_t ausm_linear_packed(int64_t K, int64_t N) { return vectors(N) * L * K; }

// Packs w (G, N, K). The rest of the last vector is 0.
void ausm_linear_pack(int64_t G, int64_t K, int64_t N, const float* w, float* packed) {
  for (int64_t g = 0; g < G; ++g)
    for (int64_t n0 = 0; n0 < N; n0 += kPanel) {
      const int64_t width = (vectors(N - n0) < kColumns ? vectors(N - n0) : kColumns) * L;
      for (int64_t k = 0; k < K; ++k)
        for (int64_t n = n0; n < n0 + width; ++n) *packed++ = n < N ? w[(g * N + n) * K + k] : 0.f;
    }
}

void ausm_linear(const Linear* arguments) {
  const Linear& a = *arguments;
  int64_t rows = kBlock / a.K / kRows * kRows;  // of a part, whole blocks
  const int64_t share = (a.G * a.M / a.threads / kRows + 1) * kRows;
  rows = rows < share ? rows : share;
  rows = rows < kRows ? kRows : rows;
  const int64_t parts = (a.M + rows - 1) / rows, size = ausm_linear_packed(a.K, a.N);
#pragma omp parallel for num_threads(a.threads) schedule(dynamic, 1)
  for (int64_t part = 0; part < a.G * parts; ++part) {
    const int64_t g = part / parts, first = part % parts * rows, end = first + rows < a.M ? first + rows : a.M;
    const float *x = a.x + g * a.M * a.K, *packed = a.packed + g * size;
    float* y = a.y + g * a.M * a.N;
    for (int64_t n = 0; n < a.N; n += kPanel) {
      switch (vectors(a.N - n) < kColumns ? vectors(a.N - n) : kColumns) {
        case 1: panel<1>(a, x, packed, n, y, first, end); break;
        case 2: panel<2>(a, x, packed, n, y, first, end); break;
#if defined(__AVX512F__)
        case 3: panel<3>(a, x, packed, n, y, first, end); break;
        default: panel<4>(a, x, packed, n, y, first, end);
#endif
      }
      packed += kPanel * a.K;
    }
  }
}
}
