// Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
//
// Depthwise convolution with bias and clamp on the CPU, forward, channels last. The padding is not written anywhere:
// weights that fall on it are skipped. Called from cpu.py.
//
// B: frames; H, W: input size; P, Q: output size; C: channels, a multiple of L; K: side of the kernel; L: lanes of a
// vector.

#include "../vector.h"

namespace {

constexpr int kColumns = 6;  // neighbouring outputs that share a weight; their sums stay in registers

struct Depthwise {
  int64_t B, H, W, P, Q, C, K, stride, top, left;
  float low, high;
  int32_t threads, reserved;
  const float *x, *weight, *bias;  // (B, H, W, C), (K, K, C), (C)
  float* y;                        // (B, P, Q, C)
};

inline Vec clamp(Vec v, Vec low, Vec high) {
  v = v < low ? low : v;
  return v > high ? high : v;
}

// kCount neighbouring outputs from column q on. Only weights [ky0, ky1) x [kx0, kx1) are inside the image for them.
template <int kCount>
inline void outputs(const Depthwise& a, const float* image, float* out, int64_t p, int64_t q, int64_t ky0, int64_t ky1,
                    int64_t kx0, int64_t kx1) {
  const Vec low = Vec{} + a.low, high = Vec{} + a.high;
  const int64_t step = a.stride * a.C, row = a.W * a.C;
  const float* corner = image + (p * a.stride - a.top) * row + (q * a.stride - a.left) * a.C;
  for (int64_t c = 0; c < a.C; c += L) {
    Vec sums[kCount];
    const Vec bias = load(a.bias + c);
    for (int i = 0; i < kCount; ++i) sums[i] = bias;
    for (int64_t ky = ky0; ky < ky1; ++ky)
      for (int64_t kx = kx0; kx < kx1; ++kx) {
        const Vec weight = load(a.weight + (ky * a.K + kx) * a.C + c);
        const float* from = corner + ky * row + kx * a.C + c;
        for (int i = 0; i < kCount; ++i) sums[i] += weight * load(from + i * step);
      }
    for (int i = 0; i < kCount; ++i) store(out + q * a.C + i * a.C + c, clamp(sums[i], low, high));
  }
}

inline int64_t largest(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t smallest(int64_t a, int64_t b) { return a < b ? a : b; }

// First and last + 1 of the weights of output `i` that are inside an axis of `length` inputs.
inline void inside(const Depthwise& a, int64_t i, int64_t before, int64_t length, int64_t* first, int64_t* end) {
  *first = smallest(a.K, largest(0, before - i * a.stride));
  *end = largest(*first, smallest(a.K, length + before - i * a.stride));
}

}  // namespace

extern "C" {
int32_t ausm_depthwise_lanes() { return L; }

void ausm_depthwise(const Depthwise* arguments) {
  const Depthwise& a = *arguments;
#pragma omp parallel for num_threads(a.threads) schedule(dynamic, 1)
  for (int64_t line = 0; line < a.B * a.P; ++line) {
    const int64_t p = line % a.P;
    const float* image = a.x + line / a.P * a.H * a.W * a.C;
    float* out = a.y + line * a.Q * a.C;
    int64_t ky0, ky1, kx0, kx1;
    inside(a, p, a.top, a.H, &ky0, &ky1);
    for (int64_t q = 0; q < a.Q;) {
      inside(a, q, a.left, a.W, &kx0, &kx1);
      const bool whole = q * a.stride >= a.left && (q + kColumns - 1) * a.stride - a.left + a.K <= a.W;
      if (whole && q + kColumns <= a.Q) {
        outputs<kColumns>(a, image, out, p, q, ky0, ky1, 0, a.K);
        q += kColumns;
      } else {
        outputs<1>(a, image, out, p, q, ky0, ky1, kx0, kx1);
        ++q;
      }
    }
  }
}
}
