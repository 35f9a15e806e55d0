// Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
//
// Multi-scale deformable attention on the CPU, forward. A sample is a weighted sum of four rows of C channels: whole
// vectors are read, where grid_sample reads single numbers. Called from cpu.py.
//
// B: frames; S: pixels of all levels, which are also the queries; H: heads; L: levels; P: points; C: channels of a
// head.

#include <cmath>
#include <cstdint>

namespace {

struct Sizes {
  const int64_t* sizes;  // (L, 2), height and width
  int64_t B, S, H, L, P, C;
};

// One head of one query: the sum of its samples, weighted by the softmax of the logits. kChannels: C as a compile-time
// constant, so that the sums stay in registers; 0: any C.
template <int kChannels>
inline void gather(const Sizes& n, const float* plane, const float* offsets, const float* logits, float x_centre,
                   float y_centre, float* out) {
  const int64_t C = kChannels ? kChannels : n.C, stride = n.H * C;
  float registers[kChannels ? kChannels : 1];
  float* sums = kChannels ? registers : out;
  for (int64_t c = 0; c < C; ++c) sums[c] = 0;
  float highest = logits[0], total = 0;
  for (int64_t i = 1; i < n.L * n.P; ++i) highest = logits[i] > highest ? logits[i] : highest;
  for (int64_t l = 0; l < n.L; ++l) {
    const int64_t height = n.sizes[2 * l], width = n.sizes[2 * l + 1];
    for (int64_t p = 0; p < n.P; ++p, offsets += 2, ++logits) {
      const float weight = std::exp(*logits - highest);
      total += weight;
      const float x = x_centre * width - 0.5f + offsets[0];
      const float y = y_centre * height - 0.5f + offsets[1];
      if (!(x > -1 && y > -1 && x < width && y < height)) continue;  // only padding, or NaN
      const int64_t left = int64_t(x + 1) - 1, top = int64_t(y + 1) - 1;  // floor, since both are above -1
      const float right_part = x - left, bottom_part = y - top;
      const bool in_left = left >= 0, in_right = left + 1 < width, in_top = top >= 0, in_bottom = top + 1 < height;
      const float* corner = plane + (top * width + left) * stride;
      const auto add = [&](const float* row, float part) {
        for (int64_t c = 0; c < C; ++c) sums[c] += part * row[c];
      };
      const float above = weight * (1 - bottom_part), below = weight * bottom_part;
      if (in_top && in_left) add(corner, above * (1 - right_part));
      if (in_top && in_right) add(corner + stride, above * right_part);
      if (in_bottom && in_left) add(corner + width * stride, below * (1 - right_part));
      if (in_bottom && in_right) add(corner + (width + 1) * stride, below * right_part);
    }
    plane += height * width * stride;
  }
  for (int64_t c = 0; c < C; ++c) out[c] = sums[c] / total;
}

template <int kChannels>
void attend(const Sizes& n, const float* values, const float* offsets, const float* logits, float* out,
            int32_t threads) {
#pragma omp parallel for num_threads(threads) schedule(dynamic, 64)
  for (int64_t query = 0; query < n.B * n.S; ++query) {
    const float* image = values + query / n.S * n.S * n.H * n.C;
    int64_t level = 0, pixel = query % n.S;  // the query's level and its index in it
    for (; pixel >= n.sizes[2 * level] * n.sizes[2 * level + 1]; ++level)
      pixel -= n.sizes[2 * level] * n.sizes[2 * level + 1];
    const int64_t width = n.sizes[2 * level + 1];
    const float y_centre = (pixel / width + 0.5f) / n.sizes[2 * level];
    const float x_centre = (pixel % width + 0.5f) / width;
    for (int64_t head = 0; head < n.H; ++head) {
      const int64_t row = query * n.H + head, first_sample = row * n.L * n.P;
      gather<kChannels>(n, image + head * n.C, offsets + 2 * first_sample, logits + first_sample, x_centre, y_centre,
                        out + row * n.C);
    }
  }
}

}  // namespace

extern "C" {
// values, out: (B, S, H, C); offsets: (B, S, H, L, P, 2), x and y in pixels; logits: (B, S, H, L, P).
void ausm_deformable_attention(const float* values, const float* offsets, const float* logits, const int64_t* sizes,
                               float* out, int64_t B, int64_t S, int64_t H, int64_t L, int64_t P, int64_t C,
                               int32_t threads) {
  const Sizes n = {sizes, B, S, H, L, P, C};
  if (C == 32) return attend<32>(n, values, offsets, logits, out, threads);
  if (C == 16) return attend<16>(n, values, offsets, logits, out, threads);
  attend<0>(n, values, offsets, logits, out, threads);
}
}
