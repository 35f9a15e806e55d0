// Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
//
// Depthwise convolution on the CPU, forward. Called from cpu.py.

#include "depthwise.h"

extern "C" {
int32_t ausm_depthwise_lanes() { return L; }

void ausm_depthwise(const Depthwise* arguments) {
  const Depthwise& a = *arguments;
#pragma omp parallel for num_threads(a.threads) schedule(dynamic, 1)
  for (int64_t line = 0; line < a.B * a.P; ++line)
    depthwise_row(a, a.x + line / a.P * a.H * a.W * a.C, a.y + line * a.Q * a.C, line % a.P);
}
}
