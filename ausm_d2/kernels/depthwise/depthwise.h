// Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
//
// Depthwise convolution with bias and clamp, channels last. The padding is not written anywhere: weights that fall on it
// are skipped.
//
// B: frames; H, W: input size; P, Q: output size; C: channels, a multiple of L; K: side of the kernel; L: lanes of a
// vector.

#pragma once

#include "../vector.h"

namespace {

constexpr int kDepthwise = 6;  // neighbouring outputs that share a weight; their sums stay in registers

struct Depthwise {
  int64_t B, H, W, P, Q, C, K, stride, top, left;
  float low, high;
  int32_t threads, reserved;
  const float *x, *weight, *bias;  // (B, H, W, C), (K, K, C), (C)
  float* y;                        // (B, P, Q, C)
};

// Output row p, and the weights [ky0, ky1) x [kx0, kx1) that are inside the image for it.
struct Window {
  int64_t p, ky0, ky1, kx0, kx1;
};

// V vectors of channels from c on, of kCount neighbouring outputs from column q on.
template <int kCount, int V>
inline void sum_up(const Depthwise& a, const float* image, float* out, const Window& w, int64_t q, int64_t c) {
  const Vec low = Vec{} + a.low, high = Vec{} + a.high;
  const int64_t step = a.stride * a.C, row = a.W * a.C;
  const float* corner = image + (w.p * a.stride - a.top) * row + (q * a.stride - a.left) * a.C + c;
  Vec sums[kCount][V];
  for (int v = 0; v < V; ++v) {
    const Vec bias = load(a.bias + c + v * L);
    for (int i = 0; i < kCount; ++i) sums[i][v] = bias;
  }
  for (int64_t ky = w.ky0; ky < w.ky1; ++ky)
    for (int64_t kx = w.kx0; kx < w.kx1; ++kx) {
      const float *weight = a.weight + (ky * a.K + kx) * a.C + c, *from = corner + ky * row + kx * a.C;
      for (int v = 0; v < V; ++v) {
        const Vec factor = load(weight + v * L);
        for (int i = 0; i < kCount; ++i) sums[i][v] += factor * load(from + i * step + v * L);
      }
    }
  for (int i = 0; i < kCount; ++i)
    for (int v = 0; v < V; ++v) store(out + (q + i) * a.C + c + v * L, clamp(sums[i][v], low, high));
}

// Two vectors at a time read whole cache lines of 64 bytes with AVX2.
template <int kCount>
inline void outputs(const Depthwise& a, const float* image, float* out, const Window& w, int64_t q) {
  int64_t c = 0;
  for (; c + 2 * L <= a.C; c += 2 * L) sum_up<kCount, 2>(a, image, out, w, q, c);
  for (; c < a.C; c += L) sum_up<kCount, 1>(a, image, out, w, q, c);
}

inline int64_t largest(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t smallest(int64_t a, int64_t b) { return a < b ? a : b; }

// First and last + 1 of the weights of output `i` that are inside an axis of `length` inputs.
inline void inside(const Depthwise& a, int64_t i, int64_t before, int64_t length, int64_t* first, int64_t* end) {
  *first = smallest(a.K, largest(0, before - i * a.stride));
  *end = largest(*first, smallest(a.K, length + before - i * a.stride));
}

// Output row p of an image (H, W, C).
inline void depthwise_row(const Depthwise& a, const float* image, float* out, int64_t p) {
  Window window{p, 0, 0, 0, 0};
  inside(a, p, a.top, a.H, &window.ky0, &window.ky1);
  for (int64_t q = 0; q < a.Q;) {
    inside(a, q, a.left, a.W, &window.kx0, &window.kx1);
    const bool whole = q * a.stride >= a.left && (q + kDepthwise - 1) * a.stride - a.left + a.K <= a.W;
    if (whole && q + kDepthwise <= a.Q) {
      window.kx0 = 0, window.kx1 = a.K;
      outputs<kDepthwise>(a, image, out, window, q);
      q += kDepthwise;
    } else {
      outputs<1>(a, image, out, window, q);
      ++q;
    }
  }
}

}  // namespace
