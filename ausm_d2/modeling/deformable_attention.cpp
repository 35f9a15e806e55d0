// Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
//
// Multi-scale deformable attention on the CPU, forward: every sample is a weighted sum of four rows of C channels, so
// whole vectors are read where grid_sample takes one number at a time. Called from deformable_attention.py.
//
// B: images; S: pixels of all levels, which are the queries too; H: heads; L: levels; P: points; C: channels of a head.

#include <cmath>
#include <cstdint>

namespace {

inline void add(float* __restrict out, const float* __restrict row, float weight, int64_t channels) {
  for (int64_t c = 0; c < channels; ++c) out[c] += weight * row[c];
}

}  // namespace

extern "C" {
// values, out: (B, S, H, C); offsets: (B, S, H, L, P, 2), x and y in pixels; weights: (B, S, H, L, P); sizes: (L, 2),
// height and width.
void ausm_deformable_attention(const float* values, const float* offsets, const float* weights, const int64_t* sizes,
                               float* out, int64_t B, int64_t S, int64_t H, int64_t L, int64_t P, int64_t C,
                               int32_t threads) {
#pragma omp parallel for num_threads(threads) schedule(dynamic, 64)
  for (int64_t query = 0; query < B * S; ++query) {
    const float* image = values + query / S * S * H * C;
    int64_t level = 0, pixel = query % S;  // the query's own level and place in it
    for (; pixel >= sizes[2 * level] * sizes[2 * level + 1]; ++level) pixel -= sizes[2 * level] * sizes[2 * level + 1];
    const float y_centre = (pixel / sizes[2 * level + 1] + 0.5f) / sizes[2 * level];
    const float x_centre = (pixel % sizes[2 * level + 1] + 0.5f) / sizes[2 * level + 1];
    for (int64_t head = 0; head < H; ++head) {
      const int64_t first_sample = (query * H + head) * L * P;
      float* row = out + (query * H + head) * C;
      for (int64_t c = 0; c < C; ++c) row[c] = 0;
      const float* plane = image + head * C;
      for (int64_t l = 0; l < L; ++l) {
        const int64_t height = sizes[2 * l], width = sizes[2 * l + 1];
        for (int64_t p = 0; p < P; ++p) {
          const int64_t sample = first_sample + l * P + p;
          const float x = x_centre * width - 0.5f + offsets[2 * sample];
          const float y = y_centre * height - 0.5f + offsets[2 * sample + 1];
          if (!(x > -1 && y > -1 && x < width && y < height)) continue;  // nothing but padding, or not a number
          const float left = std::floor(x), top = std::floor(y);
          const float x_part[2] = {1 - (x - left), x - left}, y_part[2] = {1 - (y - top), y - top};
          for (int64_t i = 0; i < 2; ++i)
            for (int64_t j = 0; j < 2; ++j) {
              const int64_t at_y = int64_t(top) + i, at_x = int64_t(left) + j;
              if (at_y < 0 || at_y >= height || at_x < 0 || at_x >= width) continue;
              add(row, plane + (at_y * width + at_x) * H * C, weights[sample] * y_part[i] * x_part[j], C);
            }
        }
        plane += height * width * H * C;
      }
    }
  }
}
}
