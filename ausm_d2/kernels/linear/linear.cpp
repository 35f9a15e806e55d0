// Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
//
// Linear layers on the CPU, forward. Called from cpu.py.

#include "linear.h"

extern "C" {
int32_t ausm_linear_lanes() { return L; }

int64_t ausm_linear_packed(int64_t K, int64_t N) { return packed_size(K, N); }

// Packs w (G, N, K). The rest of the last vector is 0.
void ausm_linear_pack(int64_t G, int64_t K, int64_t N, const float* w, float* packed) {
  for (int64_t g = 0; g < G; ++g)
    for (int64_t n0 = 0; n0 < N; n0 += kPanel) {
      const int64_t width = (vectors(N - n0) < kColumns ? vectors(N - n0) : kColumns) * L;
      for (int64_t k = 0; k < K; ++k)
        for (int64_t n = n0; n < n0 + width; ++n) *packed++ = n < N ? w[(g * N + n) * K + k] : 0.f;
    }
}

void ausm_linear(const Linear* arguments) {
  const Linear& a = *arguments;
  // Parts of at least 64 rows, for several threads.
  const int64_t share = (a.M + 4 * a.threads - 1) / (4 * a.threads), size = a.threads == 1 ? a.M : share < 64 ? 64 : share;
  const int64_t rows = (size + kRows - 1) / kRows * kRows, parts = (a.M + rows - 1) / rows;
#pragma omp parallel for num_threads(a.threads) schedule(dynamic, 1)
  for (int64_t part = 0; part < a.G * parts; ++part) {
    const int64_t g = part / parts, first = part % parts * rows;
    Linear one = a;
    one.x += g * a.M * a.K, one.packed += g * packed_size(a.K, a.N), one.y += g * a.M * a.N;
    if (a.add) one.add += g * a.M * a.N;
    multiply(one, first, first + rows < a.M ? first + rows : a.M);
  }
}
}
