// Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
//
// The transforms of Winograd's F(4 x 4, 3 x 3) (Lavin and Gray, arXiv 1509.09308, Sec. 4.3), channels last: a 3 x 3
// convolution with one row of padding as 36 matrix products over tiles of 4 x 4 outputs. Called from cpu.py.
//
// B: frames; H, W: size; C: channels, a multiple of L; N: tiles of all frames; L: lanes of a vector.

#include "../vector.h"

namespace {

struct Image {
  int64_t B, H, W, C;
  int32_t threads, reserved;
  float* pixels;  // (B, H, W, C)
  float* tiles;   // (36, N, C)
};

// B^T v: six inputs.
inline void gather(const Vec* v, int stride, Vec* out) {
  const Vec a = v[0], b = v[stride], c = v[2 * stride], d = v[3 * stride], e = v[4 * stride], f = v[5 * stride];
  const Vec even = e - 4.f * c, odd = d - 4.f * b, half = e - c, skew = 2.f * (d - b);
  out[0] = 4.f * a - 5.f * c + e;
  out[stride] = even + odd;
  out[2 * stride] = even - odd;
  out[3 * stride] = half + skew;
  out[4 * stride] = half - skew;
  out[5 * stride] = 4.f * b - 5.f * d + f;
}

// A^T v: six products to four outputs.
inline void finish(const Vec* v, int stride, Vec* out) {
  const Vec sum = v[stride] + v[2 * stride], difference = v[stride] - v[2 * stride];
  const Vec sum2 = v[3 * stride] + v[4 * stride], difference2 = v[3 * stride] - v[4 * stride];
  out[0] = v[0] + sum + sum2;
  out[stride] = difference + 2.f * difference2;
  out[2 * stride] = sum + 4.f * sum2;
  out[3 * stride] = difference + 8.f * difference2 + v[5 * stride];
}

// A v: the adjoint of `finish`.
inline void spread(const Vec* v, int stride, Vec* out) {
  const Vec a = v[0], b = v[stride], c = v[2 * stride], d = v[3 * stride];
  const Vec even = a + c, odd = b + d, even4 = a + 4.f * c, odd8 = 2.f * b + 8.f * d;
  out[0] = a;
  out[stride] = even + odd;
  out[2 * stride] = even - odd;
  out[3 * stride] = even4 + odd8;
  out[4 * stride] = even4 - odd8;
  out[5 * stride] = d;
}

// Calls body(first pixel of the frame, y, x, number of the tile) for every tile; y, x: its first output.
template <typename Body>
void for_tiles(const Image& a, Body body) {
  const int64_t rows = (a.H + 3) / 4, columns = (a.W + 3) / 4;
#pragma omp parallel for num_threads(a.threads) schedule(dynamic, 1)
  for (int64_t line = 0; line < a.B * rows; ++line)
    for (int64_t i = 0; i < columns; ++i)
      body(line / rows * a.H * a.W, line % rows * 4, i * 4, line * columns + i);
}

inline int64_t count_tiles(const Image& a) { return a.B * ((a.H + 3) / 4) * ((a.W + 3) / 4); }

// A square of pixels, zero outside the frame.
template <int kSide>
inline void read(const Image& a, int64_t frame, int64_t y, int64_t x, int64_t c, Vec* out) {
  for (int i = 0; i < kSide; ++i)
    for (int j = 0; j < kSide; ++j) {
      const bool inside = y + i >= 0 && y + i < a.H && x + j >= 0 && x + j < a.W;
      out[i * 6 + j] = inside ? load(a.pixels + (frame + (y + i) * a.W + x + j) * a.C + c) : Vec{};
    }
}

inline void write_tile(const Image& a, int64_t tile, int64_t c, const Vec* v) {
  const int64_t step = count_tiles(a) * a.C;
  float* to = a.tiles + tile * a.C + c;
  for (int i = 0; i < 36; ++i) store(to + i * step, v[i]);
}

}  // namespace

extern "C" {
int32_t ausm_winograd_lanes() { return L; }

// Pixels to tiles: B^T d B of the 6 x 6 inputs of each tile.
void ausm_winograd_gather(const Image* arguments) {
  const Image& a = *arguments;
  for_tiles(a, [&a](int64_t frame, int64_t y, int64_t x, int64_t tile) {
    for (int64_t c = 0; c < a.C; c += L) {
      Vec v[36], w[36];
      read<6>(a, frame, y - 1, x - 1, c, v);
      for (int j = 0; j < 6; ++j) gather(v + j, 6, w + j);
      for (int i = 0; i < 6; ++i) gather(w + 6 * i, 1, v + 6 * i);
      write_tile(a, tile, c, v);
    }
  });
}

// Tiles to pixels: A^T m A.
void ausm_winograd_finish(const Image* arguments) {
  const Image& a = *arguments;
  const int64_t step = count_tiles(a) * a.C;
  for_tiles(a, [&a, step](int64_t frame, int64_t y, int64_t x, int64_t tile) {
    for (int64_t c = 0; c < a.C; c += L) {
      Vec v[36], w[36];
      const float* from = a.tiles + tile * a.C + c;
      for (int i = 0; i < 36; ++i) v[i] = load(from + i * step);
      for (int j = 0; j < 6; ++j) finish(v + j, 6, w + j);
      for (int i = 0; i < 4; ++i) finish(w + 6 * i, 1, v + 6 * i);
      for (int i = 0; i < 4 && y + i < a.H; ++i)
        for (int j = 0; j < 4 && x + j < a.W; ++j)
          store(a.pixels + (frame + (y + i) * a.W + x + j) * a.C + c, v[6 * i + j]);
    }
  });
}

// Pixels to tiles: A y A^T of the 4 x 4 outputs of each tile, for gradients of the products.
void ausm_winograd_spread(const Image* arguments) {
  const Image& a = *arguments;
  for_tiles(a, [&a](int64_t frame, int64_t y, int64_t x, int64_t tile) {
    for (int64_t c = 0; c < a.C; c += L) {
      Vec v[36], w[36];
      read<4>(a, frame, y, x, c, v);
      for (int j = 0; j < 4; ++j) spread(v + j, 6, w + j);
      for (int i = 0; i < 6; ++i) spread(w + 6 * i, 1, v + 6 * i);
      write_tile(a, tile, c, v);
    }
  });
}
}
