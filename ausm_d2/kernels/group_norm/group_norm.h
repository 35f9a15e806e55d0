// Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
//
// Group norm, channels last. Pixels are summed up in parts, which threads can share: as differences from the part's
// first pixel, in float over a block of pixels and in double over blocks.
//
// C: channels, a multiple of L; G: groups; L: lanes of a vector.

#pragma once

#include <cmath>

#include "../vector.h"

namespace {

constexpr int64_t kNormBlock = 64;  // pixels

struct Norm {
  int64_t C, G;
  float eps;
  const float *weight, *bias;  // (C)
};

// First of the lines of a part.
inline int64_t first_line(int64_t lines, int64_t part, int64_t parts) { return lines * part / parts; }

template <int V>
inline void add_vectors(const float* x, int64_t pixels, int64_t C, const float* origin, double* sums, int64_t c) {
  Vec sum[V] = {}, square[V] = {}, from[V];
  for (int v = 0; v < V; ++v) from[v] = load(origin + c + v * L);
  for (int64_t p = 0; p < pixels; ++p)
    for (int v = 0; v < V; ++v) {
      const Vec d = load(x + p * C + c + v * L) - from[v];
      sum[v] += d;
      square[v] += d * d;
    }
  for (int v = 0; v < V; ++v)
    for (int i = 0; i < L; ++i) sums[c + v * L + i] += sum[v][i], sums[C + c + v * L + i] += square[v][i];
}

// Adds pixels (pixels, C) to sums (2, C): of their differences from `origin` (C), and of the squares.
inline void add_pixels(const float* x, int64_t pixels, int64_t C, const float* origin, double* sums) {
  for (; pixels > 0; pixels -= kNormBlock, x += kNormBlock * C) {
    const int64_t count = pixels < kNormBlock ? pixels : kNormBlock;
    int64_t c = 0;
    for (; c + 2 * L <= C; c += 2 * L) add_vectors<2>(x, count, C, origin, sums, c);
    for (; c < C; c += L) add_vectors<1>(x, count, C, origin, sums, c);
  }
}

// Sums of a part, as from add_pixels -> means of its channels, and summed squares of the differences from them.
inline void centre(const float* origin, int64_t pixels, int64_t C, double* sums) {
  if (!pixels) return;
  for (int64_t c = 0; c < C; ++c) {
    const double own = sums[c] / pixels;
    sums[C + c] -= own * sums[c];
    sums[c] = own + origin[c];
  }
}

// Factor and summand (2, C) of every channel of a frame of `lines` of `width` pixels.
// moments: (parts, 2, C), as from centre; part i has the lines from first_line(lines, i, parts) on.
inline void normaliser(const Norm& a, int64_t lines, int64_t width, int64_t parts, const double* moments, float* scale) {
  const int64_t channels = a.C / a.G;
  const double pixels = double(lines) * width;
  for (int64_t g = 0; g < a.G; ++g) {
    double mean = 0, variance = 0;
    for (int64_t i = 0; i < parts; ++i) {
      const double share = (first_line(lines, i + 1, parts) - first_line(lines, i, parts)) * width / pixels;
      for (int64_t c = g * channels; c < (g + 1) * channels; ++c) mean += share * moments[i * 2 * a.C + c];
    }
    mean /= channels;
    for (int64_t i = 0; i < parts; ++i) {
      const double share = (first_line(lines, i + 1, parts) - first_line(lines, i, parts)) * width / pixels;
      for (int64_t c = g * channels; c < (g + 1) * channels; ++c) {
        const double away = moments[i * 2 * a.C + c] - mean;
        variance += moments[(i * 2 + 1) * a.C + c] / pixels + share * away * away;
      }
    }
    const double factor = 1 / std::sqrt(variance / channels + a.eps);
    for (int64_t c = g * channels; c < (g + 1) * channels; ++c) {
      scale[c] = float(factor * a.weight[c]);
      scale[a.C + c] = float(a.bias[c] - mean * factor * a.weight[c]);
    }
  }
}

// y = x * factor + summand, + add where it is not null, then ReLU if kRelu; (pixels, C) each.
template <bool kRelu>
inline void apply(const float* x, int64_t pixels, int64_t C, const float* scale, const float* add, float* y) {
  for (int64_t p = 0; p < pixels * C; p += C)
    for (int64_t c = 0; c < C; c += L) {
      Vec v = load(x + p + c) * load(scale + c) + load(scale + C + c);
      if (add) v += load(add + p + c);
      if (kRelu) v = v < 0.f ? Vec{} : v;
      store(y + p + c, v);
    }
}

}  // namespace
