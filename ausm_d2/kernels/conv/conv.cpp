// Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
//
// The causal convolution of Mamba with SiLU on the CPU, forward and backward: many sequences, few frames each.
//
// N: sequences; T: frames; E: inner channels; K: width of the convolution; L: lanes of a vector.

#include "../recurrent.h"

namespace {

struct Conv {
  int64_t N, T, E, K;
  int32_t threads, parts, bfloat16, reserved;
  Rows x, y;
  const float *weight, *bias;  // (K, E), (E)
  const void* initial;         // (N, E, K), may be null
  void* last;                  // (N, E, K)
  // Backward only.
  Rows dy, dx;
  const void* dlast;      // may be null
  float *dweight, *dbias;  // (parts, K, E), (parts, E)
  void* dinitial;         // may be null
};

// Inputs of a block of channels, starting K frames before the first: in[K + t] is the input of frame t.
template <typename T>
void load_inputs(const Conv& a, int64_t n, int64_t e, int count, Vec* in) {
  for (int64_t k = 0; k < a.K; ++k) in[k] = Vec{};
  if (a.initial) load_transposed(static_cast<const T*>(a.initial) + (n * a.E + e) * a.K, in, a.K, count);
  for (int64_t t = 0; t < a.T; ++t) in[a.K + t] = load(a.x.at<const T>(n, t) + e, count);
}

// bias + sum_k weight[k] in[t + 1 + k]
inline Vec convolve(const Conv& a, const Vec* weight, Vec bias, const Vec* in, int64_t t) {
  for (int64_t k = 0; k < a.K; ++k) bias += weight[k] * in[t + 1 + k];
  return bias;
}

// One frame from a given state. The width is a compile-time constant, so everything stays in registers.
template <typename T, int kWidth>
void conv_step(const Conv& a) {
  parallel(a, [&a](int, int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n)
      for (int64_t e = 0; e < a.E; e += L) {
        const int count = a.E - e < L ? int(a.E - e) : L;
        const int64_t offset = (n * a.E + e) * kWidth;
        Vec in[kWidth + 1], y = load(a.bias + e, count);
        load_transposed(static_cast<const T*>(a.initial) + offset, in, kWidth, count);
        in[kWidth] = load(a.x.at<const T>(n, 0) + e, count);
        for (int k = 0; k < kWidth; ++k) y += load(a.weight + k * a.E + e, count) * in[k + 1];
        store(a.y.at<T>(n, 0) + e, y * sigmoid(y), count);
        store_transposed(static_cast<T*>(a.last) + offset, in + 1, kWidth, count);
      }
  });
}

template <typename T>
void conv_forward(const Conv& a) {
  if (a.T == 1 && a.K == 4 && a.initial) return conv_step<T, 4>(a);
  parallel(a, [&a](int, int64_t begin, int64_t end) {
    Scratch scratch(2 * a.K + a.T);
    Vec *weight = scratch.take(a.K), *in = scratch.take(a.K + a.T);
    for (int64_t n = begin; n < end; ++n)
      for (int64_t e = 0; e < a.E; e += L) {
        const int count = a.E - e < L ? int(a.E - e) : L;
        const Vec bias = load(a.bias + e, count);
        for (int64_t k = 0; k < a.K; ++k) weight[k] = load(a.weight + k * a.E + e, count);
        load_inputs<T>(a, n, e, count, in);
        for (int64_t t = 0; t < a.T; ++t) {
          const Vec y = convolve(a, weight, bias, in, t);
          store(a.y.at<T>(n, t) + e, y * sigmoid(y), count);
        }
        store_transposed(static_cast<T*>(a.last) + (n * a.E + e) * a.K, in + a.T, a.K, count);
      }
  });
}

template <typename T>
void conv_backward(const Conv& a) {
  parallel(a, [&a](int part, int64_t begin, int64_t end) {
    const int64_t blocks = (a.E + L - 1) / L;
    Scratch scratch(a.K + 2 * (a.K + a.T) + blocks * (a.K + 1));
    Vec *weight = scratch.take(a.K), *in = scratch.take(a.K + a.T), *din = scratch.take(a.K + a.T);
    Vec *dweight = scratch.take(blocks * a.K), *dbias = scratch.take(blocks);
    for (int64_t n = begin; n < end; ++n)
      for (int64_t block = 0; block < blocks; ++block) {
        const int64_t e = block * L, offset = (n * a.E + e) * a.K;
        const int count = a.E - e < L ? int(a.E - e) : L;
        const Vec bias = load(a.bias + e, count);
        for (int64_t k = 0; k < a.K; ++k) weight[k] = load(a.weight + k * a.E + e, count);
        load_inputs<T>(a, n, e, count, in);
        for (int64_t t = 0; t < a.K + a.T; ++t) din[t] = Vec{};
        if (a.dlast) load_transposed(static_cast<const T*>(a.dlast) + offset, din + a.T, a.K, count);
        for (int64_t t = 0; t < a.T; ++t) {
          const Vec y = convolve(a, weight, bias, in, t), gate = sigmoid(y);
          const Vec g = load(a.dy.at<const T>(n, t) + e, count) * gate * (1.f + y * (1.f - gate));
          dbias[block] += g;
          for (int64_t k = 0; k < a.K; ++k) {
            dweight[block * a.K + k] += g * in[t + 1 + k];
            din[t + 1 + k] += g * weight[k];
          }
        }
        for (int64_t t = 0; t < a.T; ++t) store(a.dx.at<T>(n, t) + e, din[a.K + t], count);
        if (a.dinitial) store_transposed(static_cast<T*>(a.dinitial) + offset, din, a.K, count);
      }
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t e = block * L;
      const int count = a.E - e < L ? int(a.E - e) : L;
      for (int64_t k = 0; k < a.K; ++k) store(a.dweight + (part * a.K + k) * a.E + e, dweight[block * a.K + k], count);
      store(a.dbias + part * a.E + e, dbias[block], count);
    }
  });
}

}  // namespace

extern "C" {
void ausm_conv_forward(const Conv* a) { a->bfloat16 ? conv_forward<BFloat16>(*a) : conv_forward<float>(*a); }
void ausm_conv_backward(const Conv* a) { a->bfloat16 ? conv_backward<BFloat16>(*a) : conv_backward<float>(*a); }
}
