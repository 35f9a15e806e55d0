// Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
//
// The selective scan of Mamba on the CPU, forward and backward: many sequences, few frames each.
//
// N: sequences; T: frames; E: inner channels; S: state size; L: lanes of a vector.
//
// Sums over channels, in dB and dC, are vectors until all blocks are done. The backward pass recomputes the states of
// one block from the initial state, so no buffer of size N x T x E x S is needed. States are float.

#include "../recurrent.h"

namespace {

struct Scan {
  int64_t N, T, E, S;
  int32_t threads, parts, bfloat16, delta_softplus;
  Rows u, delta, z, B, C, y;  // z may be null
  const float *A;             // (S, E), times log2(e)
  const float *D, *delta_bias, *initial;  // may be null
  float* last;                            // (N, E, S)
  // Backward only.
  Rows dy, du, ddelta, dz, dB, dC;
  const float* dlast;                 // may be null
  float *dA, *dD, *dbias, *dinitial;  // dA (parts, S, E), dD and dbias (parts, E); dinitial may be null
};

// Per-frame values of a block of channels.
struct Inputs {
  Vec *dt, *dtu, *y;
};

template <typename T>
void load_rows(const Rows& rows, int64_t n, int64_t frames, int64_t size, float* out) {
  for (int64_t t = 0; t < frames; ++t) {
    const T* p = rows.at<const T>(n, t);
    for (int64_t s = 0; s < size; ++s) out[t * size + s] = to_float(p[s]);
  }
}

// Runs SC states of a block through all frames and adds C h to y.
template <int SC, bool kKeep>
inline void forward_states(const Scan& a, const Vec* A, Vec* h, const float* B, const float* C, const Inputs& in,
                           Vec* decays, Vec* states) {
  Vec state[SC], coefficient[SC];
  for (int j = 0; j < SC; ++j) state[j] = h[j], coefficient[j] = A[j];
  for (int64_t t = 0; t < a.T; ++t) {
    const Vec dt = in.dt[t], dtu = in.dtu[t];
    Vec y = in.y[t];
    for (int j = 0; j < SC; ++j) {
      const Vec decay = exp2(dt * coefficient[j]);
      if (kKeep) decays[t * SC + j] = decay, states[t * SC + j] = state[j];
      state[j] = decay * state[j] + dtu * B[t * a.S + j];
      y += state[j] * C[t * a.S + j];
    }
    in.y[t] = y;
  }
  for (int j = 0; j < SC; ++j) h[j] = state[j];
}

// One frame from a given state, for a block of `count` channels. The S states of a channel are kChunks contiguous
// vectors: no transposition; lanes are combined only in the sums over states.
template <int kChunks>
inline Vec step_states(const Scan& a, const float* A, const Vec* B, const Vec* C, Vec dt, Vec dtu, int64_t offset,
                       int count) {
  float dts[L], dtus[L];
  store(dts, dt), store(dtus, dtu);
  const float* before = a.initial + offset;
  float* after = a.last + offset;
  const auto weighted = [&](int i) {
    Vec y = {};
    if (i >= count) return y;
    for (int j = 0; j < kChunks; ++j) {
      const int64_t at = (i * kChunks + j) * L;
      const Vec driven = dtus[i] * B[j];
      const Vec h = exp2(dts[i] * load(A + at)) * load(before + at) + driven;
      __builtin_prefetch(before + at + 32 * L);
      store(after + at, h);
      y = j ? y + h * C[j] : h * C[j];
    }
    return y;
  };
  return lane_sums<L>(weighted);
}

template <typename T, int kChunks>
void scan_step(const Scan& a) {
  Scratch scratch(a.E * kChunks);
  float* A = reinterpret_cast<float*>(scratch.take(a.E * kChunks));  // (E, S)
  for (int64_t e = 0; e < a.E; ++e)
    for (int64_t s = 0; s < a.S; ++s) A[e * a.S + s] = a.A[s * a.E + e];
  parallel(a, [&a, A](int, int64_t begin, int64_t end) {
    Scratch rows(2 * ((a.E + L - 1) / L));
    Vec *dts = rows.take((a.E + L - 1) / L), *gates = rows.take((a.E + L - 1) / L);
    for (int64_t n = begin; n < end; ++n) {
      // In loops of their own: the steps of one exponential wait for each other, those of neighbours do not.
      for (int64_t e = 0; e < a.E; e += L) {
        const int count = a.E - e < L ? int(a.E - e) : L;
        Vec dt = load(a.delta.at<const T>(n, 0) + e, count);
        if (a.delta_bias) dt += load(a.delta_bias + e, count);
        dts[e / L] = a.delta_softplus ? softplus(dt) : dt;
      }
      for (int64_t e = 0; a.z.data && e < a.E; e += L) {
        const Vec z = load(a.z.at<const T>(n, 0) + e, a.E - e < L ? int(a.E - e) : L);
        gates[e / L] = z * sigmoid(z);
      }
      Vec B[kChunks], C[kChunks];
      for (int j = 0; j < kChunks; ++j)
        B[j] = load(a.B.at<const T>(n, 0) + j * L), C[j] = load(a.C.at<const T>(n, 0) + j * L);
      for (int64_t e = 0; e < a.E; e += L) {
        const int count = a.E - e < L ? int(a.E - e) : L;
        const Vec u = load(a.u.at<const T>(n, 0) + e, count), dt = dts[e / L];
        const float* coefficients = A + e * a.S;
        const int64_t offset = (n * a.E + e) * a.S;
        Vec y = count == L ? step_states<kChunks>(a, coefficients, B, C, dt, dt * u, offset, L)
                           : step_states<kChunks>(a, coefficients, B, C, dt, dt * u, offset, count);
        if (a.D) y += load(a.D + e, count) * u;
        if (a.z.data) y *= gates[e / L];
        store(a.y.at<T>(n, 0) + e, y, count);
      }
    }
  });
}

template <typename T>
void scan_forward(const Scan& a) {
  const bool one = a.T == 1 && a.initial;
  if (one && a.S == L) return scan_step<T, 1>(a);
  if (one && a.S == 2 * L) return scan_step<T, 2>(a);
  if (one && a.S == 4 * L) return scan_step<T, 4>(a);
  parallel(a, [&a](int, int64_t begin, int64_t end) {
    Scratch scratch(3 * a.T + 2 * a.S + 2 * (a.T * a.S / L + 1));
    const Inputs in = {scratch.take(a.T), scratch.take(a.T), scratch.take(a.T)};
    Vec *A = scratch.take(a.S), *h = scratch.take(a.S);
    float* B = reinterpret_cast<float*>(scratch.take(a.T * a.S / L + 1));
    float* C = reinterpret_cast<float*>(scratch.take(a.T * a.S / L + 1));
    for (int64_t n = begin; n < end; ++n) {
      load_rows<T>(a.B, n, a.T, a.S, B);
      load_rows<T>(a.C, n, a.T, a.S, C);
      for (int64_t e = 0; e < a.E; e += L) {
        const int count = a.E - e < L ? int(a.E - e) : L;
        const Vec bias = a.delta_bias ? load(a.delta_bias + e, count) : Vec{};
        const Vec D = a.D ? load(a.D + e, count) : Vec{};
        for (int64_t t = 0; t < a.T; ++t) {
          for (const Rows* rows : {&a.u, &a.delta, &a.z}) rows->prefetch<T>(n, t, e + L);
          a.y.prefetch<T>(n, t, e);
          Vec dt = load(a.delta.at<const T>(n, t) + e, count) + bias;
          if (a.delta_softplus) dt = softplus(dt);
          const Vec u = load(a.u.at<const T>(n, t) + e, count);
          in.dt[t] = dt;
          in.dtu[t] = dt * u;
          in.y[t] = D * u;
        }
        for (int64_t s = 0; s < a.S; ++s) A[s] = load(a.A + s * a.E + e, count), h[s] = Vec{};
        float* state = a.last + (n * a.E + e) * a.S;
        if (a.initial) load_transposed(a.initial + (n * a.E + e) * a.S, h, a.S, count);
        int64_t s = 0;
        for (; s + 4 <= a.S; s += 4) forward_states<4, false>(a, A + s, h + s, B + s, C + s, in, nullptr, nullptr);
        for (; s < a.S; ++s) forward_states<1, false>(a, A + s, h + s, B + s, C + s, in, nullptr, nullptr);
        store_transposed(state, h, a.S, count);
        for (int64_t t = 0; t < a.T; ++t) {
          Vec y = in.y[t];
          if (a.z.data) {
            const Vec z = load(a.z.at<const T>(n, t) + e, count);
            y *= z * sigmoid(z);
          }
          store(a.y.at<T>(n, t) + e, y, count);
        }
      }
    }
  });
}

// Per-frame gradients of a block of channels.
struct Gradients {
  Vec *g, *ddt, *ddtu;  // gradients of the ungated output, of dt, of dt * u
};

template <int SC>
inline void backward_states(const Scan& a, const Vec* A, const Vec* h0, Vec* dh, const float* B, const float* C,
                            const Inputs& in, const Gradients& d, Vec* dB, Vec* dC, Vec* dA, Vec* decays,
                            Vec* states) {
  Vec h[SC], carry[SC], dcoefficient[SC];
  for (int j = 0; j < SC; ++j) h[j] = h0[j], carry[j] = dh[j], dcoefficient[j] = Vec{};
  forward_states<SC, true>(a, A, h, B, C, in, decays, states);
  for (int64_t t = a.T - 1; t >= 0; --t) {
    const Vec g = d.g[t], dt = in.dt[t], dtu = in.dtu[t];
    Vec ddt = d.ddt[t], ddtu = d.ddtu[t];
    for (int j = 0; j < SC; ++j) {
      const int64_t i = t * a.S + j;
      const Vec before = states[t * SC + j];
      dC[i] += g * h[j];
      const Vec dstate = carry[j] + g * C[i];
      dB[i] += dstate * dtu;
      ddtu += dstate * B[i];
      carry[j] = dstate * decays[t * SC + j];
      const Vec dexponent = carry[j] * before;
      ddt += dexponent * A[j];
      dcoefficient[j] += dexponent * dt;
      h[j] = before;
    }
    d.ddt[t] = ddt;
    d.ddtu[t] = ddtu;
  }
  for (int j = 0; j < SC; ++j) dh[j] = carry[j], dA[j] += dcoefficient[j];
}

// Inputs of a block of `count` channels from channel e on, the gradient of its ungated output, and the slope of the
// step size over delta.
template <typename T>
void load_block(const Scan& a, int64_t n, int64_t e, int count, Vec D, const Inputs& in, const Gradients& d,
                Vec* slope) {
  const Vec bias = a.delta_bias ? load(a.delta_bias + e, count) : Vec{};
  for (int64_t t = 0; t < a.T; ++t) {
    for (const Rows* rows : {&a.u, &a.delta, &a.z, &a.dy}) rows->prefetch<T>(n, t, e + L);
    for (const Rows* rows : {&a.du, &a.ddelta, &a.dz}) rows->prefetch<T>(n, t, e);
    const Vec raw = load(a.delta.at<const T>(n, t) + e, count) + bias;
    const Vec dt = a.delta_softplus ? softplus(raw) : raw;
    slope[t] = a.delta_softplus ? sigmoid(raw) : Vec{} + 1.f;
    const Vec u = load(a.u.at<const T>(n, t) + e, count);
    Vec g = load(a.dy.at<const T>(n, t) + e, count);
    if (a.z.data) {
      const Vec z = load(a.z.at<const T>(n, t) + e, count);
      g *= z * sigmoid(z);
    }
    in.dt[t] = dt;
    in.dtu[t] = dt * u;
    in.y[t] = D * u;
    d.g[t] = g;
    d.ddt[t] = d.ddtu[t] = Vec{};
  }
}

// Gradients of a block that have a frame, and its part of those of D and the bias.
template <typename T>
void store_block(const Scan& a, int64_t n, int64_t e, int count, Vec D, const Inputs& in, const Gradients& d,
                 const Vec* slope, Vec& dD, Vec& dbias) {
  for (int64_t t = 0; t < a.T; ++t) {
    const Vec u = load(a.u.at<const T>(n, t) + e, count);
    store(a.du.at<T>(n, t) + e, d.ddtu[t] * in.dt[t] + d.g[t] * D, count);
    const Vec ddelta = (d.ddtu[t] * u + kLn2 * d.ddt[t]) * slope[t];
    store(a.ddelta.at<T>(n, t) + e, ddelta, count);
    dbias += ddelta;
    dD += d.g[t] * u;
    if (a.z.data) {
      const Vec z = load(a.z.at<const T>(n, t) + e, count), gate = sigmoid(z);
      const Vec dy = load(a.dy.at<const T>(n, t) + e, count);
      store(a.dz.at<T>(n, t) + e, dy * in.y[t] * gate * (1.f + z * (1.f - gate)), count);
    }
  }
}

template <typename T>
void scan_backward(const Scan& a) {
  parallel(a, [&a](int part, int64_t begin, int64_t end) {
    const int64_t blocks = (a.E + L - 1) / L;
    Scratch scratch(7 * a.T + 3 * a.S + 2 * (a.T * a.S / L + 1) + 2 * a.T * a.S + 8 * a.T + blocks * (a.S + 2));
    const Inputs in = {scratch.take(a.T), scratch.take(a.T), scratch.take(a.T)};
    const Gradients d = {scratch.take(a.T), scratch.take(a.T), scratch.take(a.T)};
    Vec* slope = scratch.take(a.T);
    Vec *A = scratch.take(a.S), *h0 = scratch.take(a.S), *dh = scratch.take(a.S);
    float* B = reinterpret_cast<float*>(scratch.take(a.T * a.S / L + 1));
    float* C = reinterpret_cast<float*>(scratch.take(a.T * a.S / L + 1));
    Vec *dB = scratch.take(a.T * a.S), *dC = scratch.take(a.T * a.S);
    Vec *decays = scratch.take(4 * a.T), *states = scratch.take(4 * a.T);
    Vec *dA = scratch.take(blocks * a.S), *dD = scratch.take(blocks), *dbias = scratch.take(blocks);
    for (int64_t n = begin; n < end; ++n) {
      load_rows<T>(a.B, n, a.T, a.S, B);
      load_rows<T>(a.C, n, a.T, a.S, C);
      std::memset(static_cast<void*>(dB), 0, a.T * a.S * sizeof(Vec));
      std::memset(static_cast<void*>(dC), 0, a.T * a.S * sizeof(Vec));
      for (int64_t block = 0; block < blocks; ++block) {
        const int64_t e = block * L, offset = (n * a.E + e) * a.S;
        const int count = a.E - e < L ? int(a.E - e) : L;
        const Vec D = a.D ? load(a.D + e, count) : Vec{};
        load_block<T>(a, n, e, count, D, in, d, slope);
        for (int64_t s = 0; s < a.S; ++s) A[s] = load(a.A + s * a.E + e, count), h0[s] = dh[s] = Vec{};
        if (a.initial) load_transposed(a.initial + offset, h0, a.S, count);
        if (a.dlast) load_transposed(a.dlast + offset, dh, a.S, count);
        Vec* dA_block = dA + block * a.S;
        int64_t s = 0;
        for (; s + 4 <= a.S; s += 4)
          backward_states<4>(a, A + s, h0 + s, dh + s, B + s, C + s, in, d, dB + s, dC + s, dA_block + s, decays,
                             states);
        for (; s < a.S; ++s)
          backward_states<1>(a, A + s, h0 + s, dh + s, B + s, C + s, in, d, dB + s, dC + s, dA_block + s, decays,
                             states);
        if (a.dinitial) store_transposed(a.dinitial + offset, dh, a.S, count);
        store_block<T>(a, n, e, count, D, in, d, slope, dD[block], dbias[block]);
      }
      for (int64_t t = 0; t < a.T; ++t)
        for (int64_t s = 0; s < a.S; ++s) {
          from_float(a.dB.at<T>(n, t) + s, sum(dB[t * a.S + s]));
          from_float(a.dC.at<T>(n, t) + s, sum(dC[t * a.S + s]));
        }
    }
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t e = block * L;
      const int count = a.E - e < L ? int(a.E - e) : L;
      for (int64_t s = 0; s < a.S; ++s) store(a.dA + (part * a.S + s) * a.E + e, dA[block * a.S + s], count);
      store(a.dD + part * a.E + e, dD[block], count);
      store(a.dbias + part * a.E + e, dbias[block], count);
    }
  });
}

}  // namespace

extern "C" {
void ausm_scan_forward(const Scan* a) { a->bfloat16 ? scan_forward<BFloat16>(*a) : scan_forward<float>(*a); }
void ausm_scan_backward(const Scan* a) { a->bfloat16 ? scan_backward<BFloat16>(*a) : scan_backward<float>(*a); }
}
