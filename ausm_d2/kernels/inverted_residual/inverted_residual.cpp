// Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
//
// An inverted residual block (MobileNetV2, arXiv 1801.04381) on the CPU, forward, channels last: 1 x 1 expansion,
// depthwise convolution, 1 x 1 projection, sum. A band of rows goes through all three before the next, so that the
// expanded channels stay in the cache. Called from cpu.py.
//
// B: frames; H, W: input size; P, Q: output size; C, E, N: channels of the input, expanded, of the output.

#include <vector>

#include "../depthwise/depthwise.h"
#include "../linear/linear.h"

namespace {

constexpr int64_t kBand = 65536;  // expanded numbers of a band: half of a small L2

struct Block {
  int64_t B, H, W, P, Q, C, E, N, K, stride, top, left;
  float low, high;
  int32_t threads, sums;  // sums: the input is added to the output
  const float *x, *expand, *expand_bias, *depthwise, *depthwise_bias, *project, *project_bias;
  float* y;
};

int64_t largest_of(int64_t a, int64_t b) { return a > b ? a : b; }
int64_t smallest_of(int64_t a, int64_t b) { return a < b ? a : b; }

// Output rows [p0, p1) of frame b.
void rows(const Block& a, int64_t b, int64_t p0, int64_t p1) {
  static thread_local std::vector<float> expanded, convolved;  // kept from call to call
  const int64_t line = a.W * a.E;
  // Output rows of a band: as many as fit, one at least.
  const int64_t band = smallest_of(p1 - p0, largest_of(1, (kBand / line - a.K) / a.stride + 1));
  const int64_t capacity = (band - 1) * a.stride + a.K;  // input rows that they need
  expanded.resize(largest_of(expanded.size(), capacity * line));
  convolved.resize(largest_of(convolved.size(), band * a.Q * a.E));
  Linear expand{1, 0, a.C, a.E, a.low, a.high, 1, 0, nullptr, a.expand, a.expand_bias, nullptr, nullptr};
  const float infinity = __builtin_inff();
  Linear project{1, 0, a.E, a.N, -infinity, infinity, 1, 0, convolved.data(), a.project, a.project_bias, nullptr, nullptr};
  const Depthwise depthwise{a.B, a.H, a.W, a.P, a.Q, a.E, a.K, a.stride, a.top, a.left, a.low, a.high, 1, 0,
                            nullptr, a.depthwise, a.depthwise_bias, nullptr};
  int64_t held0 = 0, held1 = 0;  // rows of the input that are expanded
  for (int64_t p = p0; p < p1; p += band) {
    const int64_t end = smallest_of(p + band, p1);
    const int64_t first = largest_of(0, p * a.stride - a.top);
    const int64_t last = largest_of(first, smallest_of(a.H, (end - 1) * a.stride - a.top + a.K));
    if (held1 > first)
      std::memmove(expanded.data(), expanded.data() + (first - held0) * line, (held1 - first) * line * sizeof(float));
    else
      held1 = first;
    held0 = first;
    expand.x = a.x + (b * a.H + held1) * a.W * a.C;
    expand.y = expanded.data() + (held1 - held0) * line;
    expand.M = (last - held1) * a.W;
    multiply(expand, 0, expand.M);
    held1 = last;
    for (int64_t i = p; i < end; ++i)
      depthwise_row(depthwise, expanded.data() - held0 * line, convolved.data() + (i - p) * a.Q * a.E, i);
    const int64_t place = (b * a.P + p) * a.Q * a.N;
    project.M = (end - p) * a.Q;
    project.y = a.y + place;
    project.add = a.sums ? a.x + place : nullptr;  // of the same size
    multiply(project, 0, project.M);
  }
}

}  // namespace

extern "C" {
int32_t ausm_inverted_residual_lanes() { return L; }

void ausm_inverted_residual(const Block* arguments) {
  const Block& a = *arguments;
  const int64_t chunks = smallest_of(a.threads, a.P);  // of every frame
#pragma omp parallel for num_threads(a.threads) schedule(dynamic, 1)
  for (int64_t part = 0; part < a.B * chunks; ++part) {
    const int64_t chunk = part % chunks;
    rows(a, part / chunks, a.P * chunk / chunks, a.P * (chunk + 1) / chunks);
  }
}
}
