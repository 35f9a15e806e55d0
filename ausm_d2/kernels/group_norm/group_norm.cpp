// Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
//
// Group norm, sum and ReLU on the CPU, forward, channels last. Called from cpu.py.
//
// B: frames; P: pixels; C: channels, a multiple of L; G: groups; L: lanes of a vector.

#include "group_norm.h"

namespace {

struct GroupNorm {
  int64_t B, P, C, G;
  float eps;
  int32_t relu, threads, reserved;
  const float *x, *weight, *bias, *add;  // (B, P, C), (C), (C), (B, P, C) or null
  float *y, *scale;                      // (B, P, C); (B, 2, C): working memory
};

}  // namespace

extern "C" {
int32_t ausm_group_norm_lanes() { return L; }

// Returns false if there is no memory.
int32_t ausm_group_norm(const GroupNorm* arguments) {
  const GroupNorm& a = *arguments;
  const Norm norm{a.C, a.G, a.eps, a.weight, a.bias};
  const int64_t parts = a.threads < a.P ? a.threads : a.P;  // of a frame
  double* moments = static_cast<double*>(std::calloc(a.B * parts * 2 * a.C, sizeof(double)));
  if (!moments) return false;
#pragma omp parallel num_threads(a.threads)
  {
#pragma omp for schedule(static)
    for (int64_t i = 0; i < a.B * parts; ++i) {
      const int64_t first = first_line(a.P, i % parts, parts), pixels = first_line(a.P, i % parts + 1, parts) - first;
      const float* x = a.x + (i / parts * a.P + first) * a.C;
      add_pixels(x, pixels, a.C, x, moments + i * 2 * a.C);
      centre(x, pixels, a.C, moments + i * 2 * a.C);
    }
#pragma omp for schedule(static)
    for (int64_t b = 0; b < a.B; ++b)
      normaliser(norm, a.P, 1, parts, moments + b * parts * 2 * a.C, a.scale + b * 2 * a.C);
#pragma omp for schedule(static)
    for (int64_t i = 0; i < a.B * parts; ++i) {
      const int64_t b = i / parts, first = first_line(a.P, i % parts, parts);
      const int64_t pixels = first_line(a.P, i % parts + 1, parts) - first, place = (b * a.P + first) * a.C;
      (a.relu ? apply<true> : apply<false>)(a.x + place, pixels, a.C, a.scale + b * 2 * a.C,
                                            a.add ? a.add + place : nullptr, a.y + place);
    }
  }
  std::free(moments);
  return true;
}
}
