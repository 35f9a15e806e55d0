// Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
//
// A separable block on the CPU, forward, channels last: depthwise convolution, group norm, ReLU, 1 x 1 convolution, group
// norm, sum with the input, ReLU. Each norm needs the whole frame, so there are three passes over it: everything else is
// done to a few pixels at a time, while they are in the cache. Called from cpu.py.
//
// B: frames; H, W: size; C: channels, a multiple of L; G: groups; K: side of the depthwise kernel, odd.

#include <vector>

#include "../depthwise/depthwise.h"
#include "../group_norm/group_norm.h"
#include "../linear/linear.h"

namespace {

constexpr int64_t kPixels = 8 * kRows;  // that go through the product at a time

struct Separable {
  int64_t B, H, W, C, G1, G2, K;
  float eps1, eps2;
  int32_t threads, reserved;
  const float *x, *depthwise, *depthwise_bias, *weight1, *bias1;  // (B, H, W, C), (K, K, C), then (C) each
  const float *pointwise, *pointwise_bias, *weight2, *bias2;      // packed, then (C) each
  float *y, *between, *scale;  // (B, H, W, C); working memory: the same shape, and (2, B, 2, C)
};

// The part of a frame that one thread takes.
struct Part {
  int64_t b, first, end, place, pixels;  // place: of the first pixel's channels
  Part(const Separable& a, int64_t i, int64_t parts)
      : b(i / parts),
        first(first_line(a.H, i % parts, parts)),
        end(first_line(a.H, i % parts + 1, parts)),
        place((b * a.H + first) * a.W * a.C),
        pixels((end - first) * a.W) {}
};

void convolve(const Separable& a, const Part& part, double* moments) {
  const int64_t line = a.W * a.C;
  const float infinity = __builtin_inff();
  const Depthwise depthwise{a.B, a.H, a.W, a.H, a.W, a.C, a.K, 1, a.K / 2, a.K / 2, -infinity, infinity, 1, 0,
                            nullptr, a.depthwise, a.depthwise_bias, nullptr};
  float *image = a.between + part.b * a.H * line, *origin = a.between + part.place;
  for (int64_t p = part.first; p < part.end; ++p) {
    depthwise_row(depthwise, a.x + part.b * a.H * line, image + p * line, p);
    add_pixels(image + p * line, a.W, a.C, origin, moments);
  }
  centre(origin, part.pixels, a.C, moments);
}

// Norm, ReLU and product of what is in `between`, in place.
void project(const Separable& a, const Part& part, const float* scale, double* moments) {
  static thread_local std::vector<float> normed;  // kept from call to call
  normed.resize(kPixels * a.C > int64_t(normed.size()) ? kPixels * a.C : normed.size());
  const float infinity = __builtin_inff();
  Linear product{1, 0, a.C, a.C, -infinity, infinity, 1, 0, normed.data(), a.pointwise, a.pointwise_bias, nullptr, nullptr};
  float* origin = a.between + part.place;
  for (int64_t p = 0; p < part.pixels; p += kPixels) {
    product.M = part.pixels - p < kPixels ? part.pixels - p : kPixels;
    product.y = origin + p * a.C;
    apply<true>(product.y, product.M, a.C, scale, nullptr, normed.data());
    multiply(product, 0, product.M);
    add_pixels(product.y, product.M, a.C, origin, moments);
  }
  centre(origin, part.pixels, a.C, moments);
}

}  // namespace

extern "C" {
int32_t ausm_separable_lanes() { return L; }

// Returns false if there is no memory.
int32_t ausm_separable(const Separable* arguments) {
  const Separable& a = *arguments;
  const int64_t parts = a.threads < a.H ? a.threads : a.H, size = 2 * a.C;  // parts: of a frame
  double* moments = static_cast<double*>(std::calloc(2 * a.B * parts * size, sizeof(double)));
  if (!moments) return false;
  double* second = moments + a.B * parts * size;
  float* scale2 = a.scale + a.B * size;
#pragma omp parallel num_threads(a.threads)
  {
#pragma omp for schedule(static)
    for (int64_t i = 0; i < a.B * parts; ++i) convolve(a, Part(a, i, parts), moments + i * size);
#pragma omp for schedule(static)
    for (int64_t b = 0; b < a.B; ++b)
      normaliser({a.C, a.G1, a.eps1, a.weight1, a.bias1}, a.H, a.W, parts, moments + b * parts * size, a.scale + b * size);
#pragma omp for schedule(static)
    for (int64_t i = 0; i < a.B * parts; ++i) project(a, Part(a, i, parts), a.scale + i / parts * size, second + i * size);
#pragma omp for schedule(static)
    for (int64_t b = 0; b < a.B; ++b)
      normaliser({a.C, a.G2, a.eps2, a.weight2, a.bias2}, a.H, a.W, parts, second + b * parts * size, scale2 + b * size);
#pragma omp for schedule(static)
    for (int64_t i = 0; i < a.B * parts; ++i) {
      const Part part(a, i, parts);
      apply<true>(a.between + part.place, part.pixels, a.C, scale2 + part.b * size, a.x + part.place, a.y + part.place);
    }
  }
  std::free(moments);
  return true;
}
}
