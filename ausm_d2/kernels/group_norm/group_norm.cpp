// Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
//
// Group norm and ReLU on the CPU, forward, channels last. Sums are taken of differences from the first pixel, in float
// over a block of pixels and in double over blocks. Called from cpu.py.
//
// B: frames; P: pixels; C: channels, a multiple of L; G: groups; L: lanes of a vector.

#include <cmath>

#include "../vector.h"

namespace {

constexpr int64_t kBlock = 128;  // pixels

struct GroupNorm {
  int64_t B, P, C, G;
  float eps;
  int32_t relu, threads, reserved;
  const float *x, *weight, *bias;  // (B, P, C), (C), (C)
  float *y, *scale;                // (B, P, C); (B, 2, C): working memory
};

// Writes factor and summand of every channel of a frame. sums: (2, C), zero.
void moments(const GroupNorm& a, const float* x, float* scale, double* sums) {
  for (int64_t first = 0; first < a.P; first += kBlock) {
    const int64_t end = first + kBlock < a.P ? first + kBlock : a.P;
    for (int64_t c = 0; c < a.C; c += L) {
      const Vec origin = load(x + c);
      Vec sum = {}, square = {};
      for (int64_t p = first; p < end; ++p) {
        const Vec d = load(x + p * a.C + c) - origin;
        sum += d;
        square += d * d;
      }
      for (int i = 0; i < L; ++i) sums[c + i] += sum[i], sums[a.C + c + i] += square[i];
    }
  }
  const int64_t width = a.C / a.G;
  for (int64_t g = 0; g < a.G; ++g) {
    double mean = 0, variance = 0;
    for (int64_t c = g * width; c < (g + 1) * width; ++c) mean += sums[c] / a.P + x[c];
    mean /= width;
    for (int64_t c = g * width; c < (g + 1) * width; ++c) {
      const double own = sums[c] / a.P, away = own + x[c] - mean;
      variance += sums[a.C + c] / a.P - own * own + away * away;
    }
    const double factor = 1 / std::sqrt(variance / width + a.eps);
    for (int64_t c = g * width; c < (g + 1) * width; ++c) {
      scale[c] = float(factor * a.weight[c]);
      scale[a.C + c] = float(a.bias[c] - mean * factor * a.weight[c]);
    }
  }
}

}  // namespace

extern "C" {
int32_t ausm_group_norm_lanes() { return L; }

// Returns false if there is no memory.
int32_t ausm_group_norm(const GroupNorm* arguments) {
  const GroupNorm& a = *arguments;
  double* sums = static_cast<double*>(std::calloc(a.B * 2 * a.C, sizeof(double)));
  if (!sums) return false;
#pragma omp parallel num_threads(a.threads)
  {
#pragma omp for schedule(dynamic, 1)
    for (int64_t b = 0; b < a.B; ++b) moments(a, a.x + b * a.P * a.C, a.scale + b * 2 * a.C, sums + b * 2 * a.C);
#pragma omp for schedule(static)
    for (int64_t row = 0; row < a.B * a.P; ++row) {
      const float* scale = a.scale + row / a.P * 2 * a.C;
      for (int64_t c = 0; c < a.C; c += L) {
        Vec y = load(a.x + row * a.C + c) * load(scale + c) + load(scale + a.C + c);
        if (a.relu) y = y < 0.f ? Vec{} : y;
        store(a.y + row * a.C + c, y);
      }
    }
  }
  std::free(sums);
  return true;
}
}
