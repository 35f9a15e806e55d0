// Copyright (c) the ausm_d2 authors. SPDX-License-Identifier: Apache-2.0
//
// The two recurrent operations of Mamba on the CPU, forward and backward: many sequences, few frames each.
//
// N: sequences; T: frames; E: inner channels; S: state size; K: width of the convolution; L: lanes of a vector.
//
// Threads share the sequences. Within one, a block of L neighbouring channels is taken through all frames at a time, so
// that every operation is on whole vectors: no lane ever needs its neighbour, but for the sums over channels in dB and
// dC, which are kept as vectors until all blocks are done. The backward pass recomputes the states of one block from
// the initial state, so nothing of size N x T x E x S exists anywhere.
//
// Activations are float or bfloat16; everything in between, and the states, are float. No header of PyTorch is
// included: the caller passes addresses and strides (see cpu.py, which declares the same two structs).

#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <utility>

#include "../vector.h"

namespace {

typedef uint64_t Quad __attribute__((vector_size(8 * L)));

// The last block of channels may have fewer than L of them.
template <typename T>
inline Vec load(const T* p, int count) {
  if (count == L) return load(p);
  T padded[L] = {};
  std::memcpy(padded, p, count * sizeof(T));
  return load(padded);
}
template <typename T>
inline void store(T* p, Vec v, int count) {
  if (count == L) return store(p, v);
  T padded[L];
  store(padded, v);
  std::memcpy(p, padded, count * sizeof(T));
}

inline float to_float(float x) { return x; }
inline float to_float(BFloat16 x) {
  const uint32_t bits = uint32_t(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
inline void from_float(float* p, float x) { *p = x; }
inline void from_float(BFloat16* p, float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  p->bits = uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

constexpr float kLn2 = 0.693147180559945f;

inline Vec sigmoid(Vec x) { return 1.f / (1.f + exp2(-kLog2e * x)); }

// log(1 + e^x) = max(x, 0) + log1p(e^-|x|), and log1p(e) = 2 atanh(e / (2 + e)): accurate relative to the result.
inline Vec softplus(Vec x) {
  const Vec positive = x > 0.f ? x : Vec{};
  const Vec e = exp2(kLog2e * (x - 2.f * positive));
  const Vec s = e / (2.f + e);
  const Vec q = s * s;
  Vec p = 1.f / 15 * q + 1.f / 13;
  p = p * q + 1.f / 11;
  p = p * q + 1.f / 9;
  p = p * q + 1.f / 7;
  p = p * q + 1.f / 5;
  p = p * q + 1.f / 3;
  p = p * q + 1.f;
  return positive + 2.f * s * p;
}

#if defined(__AVX512F__)
// 4 x 4 numbers transposed in each quarter of the vectors.
inline void transpose_quarters(__m512 v[4]) {
  const __m512 a = _mm512_unpacklo_ps(v[0], v[1]), b = _mm512_unpackhi_ps(v[0], v[1]);
  const __m512 c = _mm512_unpacklo_ps(v[2], v[3]), d = _mm512_unpackhi_ps(v[2], v[3]);
  v[0] = _mm512_shuffle_ps(a, c, 0x44), v[1] = _mm512_shuffle_ps(a, c, 0xee);
  v[2] = _mm512_shuffle_ps(b, d, 0x44), v[3] = _mm512_shuffle_ps(b, d, 0xee);
}
#endif

// A block of L rows of `columns` numbers in memory is `columns` vectors here.
template <typename T>
inline void load_transposed(const T* p, Vec* v, int64_t columns, int count) {
  for (int64_t i = 0; i < columns; ++i) {
    float lane[L] = {};
    for (int j = 0; j < count; ++j) lane[j] = to_float(p[j * columns + i]);
    v[i] = load(lane);
  }
}
template <typename T>
inline void store_transposed(T* p, const Vec* v, int64_t columns, int count) {
  for (int64_t i = 0; i < columns; ++i) {
    float lane[L];
    store(lane, v[i]);
    for (int j = 0; j < count; ++j) from_float(p + j * columns + i, lane[j]);
  }
}
// Rows of four bfloat16 are whole numbers of 64 bits.
inline void load_transposed(const BFloat16* p, Vec* v, int64_t columns, int count) {
  if (count < L || columns != 4) return load_transposed<BFloat16>(p, v, columns, count);
  Quad rows;
  std::memcpy(&rows, p, sizeof rows);
  for (int i = 0; i < 4; ++i) v[i] = (Vec)(__builtin_convertvector(rows >> (16 * i), Word) << 16);
}
inline void store_transposed(BFloat16* p, const Vec* v, int64_t columns, int count) {
  if (count < L || columns != 4) return store_transposed<BFloat16>(p, v, columns, count);
  Quad rows = {};
  for (int i = 0; i < 4; ++i) rows |= __builtin_convertvector(bfloat16_bits(v[i]), Quad) << (16 * i);
  std::memcpy(p, &rows, sizeof rows);
}
#if defined(__AVX512F__)
inline void load_transposed(const float* p, Vec* v, int64_t columns, int count) {
  if (count < L || columns % 4) return load_transposed<float>(p, v, columns, count);
  for (int64_t i = 0; i < columns; i += 4) {
    __m512 tile[4];
    for (int r = 0; r < 4; ++r) {
      const float* q = p + r * columns + i;  // rows r, r + 4, r + 8, r + 12 in the quarters
      tile[r] = _mm512_castps128_ps512(_mm_loadu_ps(q));
      tile[r] = _mm512_insertf32x4(tile[r], _mm_loadu_ps(q + 4 * columns), 1);
      tile[r] = _mm512_insertf32x4(tile[r], _mm_loadu_ps(q + 8 * columns), 2);
      tile[r] = _mm512_insertf32x4(tile[r], _mm_loadu_ps(q + 12 * columns), 3);
    }
    transpose_quarters(tile);
    for (int r = 0; r < 4; ++r) v[i + r] = tile[r];
  }
}
inline void store_transposed(float* p, const Vec* v, int64_t columns, int count) {
  if (count < L || columns % 4) return store_transposed<float>(p, v, columns, count);
  for (int64_t i = 0; i < columns; i += 4) {
    __m512 tile[4] = {v[i], v[i + 1], v[i + 2], v[i + 3]};
    transpose_quarters(tile);
    for (int r = 0; r < 4; ++r) {
      float* q = p + r * columns + i;
      _mm_storeu_ps(q, _mm512_castps512_ps128(tile[r]));
      _mm_storeu_ps(q + 4 * columns, _mm512_extractf32x4_ps(tile[r], 1));
      _mm_storeu_ps(q + 8 * columns, _mm512_extractf32x4_ps(tile[r], 2));
      _mm_storeu_ps(q + 12 * columns, _mm512_extractf32x4_ps(tile[r], 3));
    }
  }
}
#endif

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define AUSM_SHUFFLES 1
#endif
#endif

#if defined(AUSM_SHUFFLES)
// Of two vectors (lane i of b counts as L + i): where chunks of `width` lanes come from that alternate between a and b,
// taken from the first halves of groups of lanes, or from the second ones. Groups of four do not cross 128 bits.
constexpr int source(int lane, int width, bool second) {
  const int group = width < 4 ? 4 : 2 * width, chunk = lane % group / width;
  return lane / group * group + (second ? group / 2 : 0) + chunk / 2 * width + lane % width + chunk % 2 * L;
}
template <int kWidth, bool kSecond, int... kLanes>
inline Vec alternate(Vec a, Vec b, std::integer_sequence<int, kLanes...>) {
  return __builtin_shufflevector(a, b, source(kLanes, kWidth, kSecond)...);
}

// Lane i is the sum of the lanes of vector(first + i), for i < kCount, a power of two up to L; the other lanes repeat it.
template <int kCount, typename Vectors>
inline Vec lane_sums(const Vectors& vector, int first = 0) {
  if constexpr (kCount == 1) {
    return vector(first);
  } else {
    constexpr int half = kCount / 2;
    constexpr auto lanes = std::make_integer_sequence<int, L>{};
    const Vec a = lane_sums<half>(vector, first), b = lane_sums<half>(vector, first + half);
    return alternate<half, false>(a, b, lanes) + alternate<half, true>(a, b, lanes);
  }
}
#else
template <int kCount, typename Vectors>
inline Vec lane_sums(const Vectors& vector) {
  Vec sums = {};
  for (int i = 0; i < kCount; ++i) sums[i] = sum(vector(i));
  return sums;
}
#endif

// An activation: rows of E or S numbers without gaps, at any distance over frames and sequences (in numbers).
struct Rows {
  void* data;
  int64_t sequence, frame;
  template <typename T>
  T* at(int64_t n, int64_t t) const {
    return static_cast<T*>(data) + n * sequence + t * frame;
  }
  // Neighbouring blocks of channels lie together, frames far apart: the hardware foresees little of that way.
  template <typename T>
  void prefetch(int64_t n, int64_t t, int64_t e) const {
    if (data) __builtin_prefetch(at<T>(n, t) + e, 1);
  }
};

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

// body(part, begin, end) for equal parts of all sequences; a thread takes the next part when it is done with one. What
// is summed over sequences is summed within a part: the result does not depend on which thread took which.
template <typename Arguments, typename Body>
void parallel(const Arguments& a, Body body) {
#pragma omp parallel for num_threads(a.threads) schedule(dynamic, 1)
  for (int part = 0; part < a.parts; ++part) body(part, a.N * part / a.parts, a.N * (part + 1) / a.parts);
}

// What a block of channels needs of its inputs at every frame.
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

// SC states of a block through all frames, with y += C h.
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

// One further frame of a block of `count` channels. The states of a channel are kChunks whole vectors as they lie in memory:
// nothing is transposed, and the sums over them are all that passes between lanes.
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
    for (int64_t n = begin; n < end; ++n) {
      Vec B[kChunks], C[kChunks];
      for (int j = 0; j < kChunks; ++j)
        B[j] = load(a.B.at<const T>(n, 0) + j * L), C[j] = load(a.C.at<const T>(n, 0) + j * L);
      for (int64_t e = 0; e < a.E; e += L) {
        const int count = a.E - e < L ? int(a.E - e) : L;
        const Vec u = load(a.u.at<const T>(n, 0) + e, count);
        Vec dt = load(a.delta.at<const T>(n, 0) + e, count);
        if (a.delta_bias) dt += load(a.delta_bias + e, count);
        if (a.delta_softplus) dt = softplus(dt);
        const float* coefficients = A + e * a.S;
        const int64_t offset = (n * a.E + e) * a.S;
        Vec y = count == L ? step_states<kChunks>(a, coefficients, B, C, dt, dt * u, offset, L)
                           : step_states<kChunks>(a, coefficients, B, C, dt, dt * u, offset, count);
        if (a.D) y += load(a.D + e, count) * u;
        if (a.z.data) {
          const Vec z = load(a.z.at<const T>(n, 0) + e, count);
          y *= z * sigmoid(z);
        }
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

// What the backward pass gathers for a block of channels at every frame.
struct Gradients {
  Vec *g, *ddt, *ddtu;  // of the ungated output, of dt, of dt * u
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
        const Vec bias = a.delta_bias ? load(a.delta_bias + e, count) : Vec{};
        const Vec D = a.D ? load(a.D + e, count) : Vec{};
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
        for (int64_t t = 0; t < a.T; ++t) {
          const Vec u = load(a.u.at<const T>(n, t) + e, count);
          store(a.du.at<T>(n, t) + e, d.ddtu[t] * in.dt[t] + d.g[t] * D, count);
          const Vec ddelta = (d.ddtu[t] * u + kLn2 * d.ddt[t]) * slope[t];
          store(a.ddelta.at<T>(n, t) + e, ddelta, count);
          dbias[block] += ddelta;
          dD[block] += d.g[t] * u;
          if (a.z.data) {
            const Vec z = load(a.z.at<const T>(n, t) + e, count), gate = sigmoid(z);
            const Vec dy = load(a.dy.at<const T>(n, t) + e, count);
            store(a.dz.at<T>(n, t) + e, dy * in.y[t] * gate * (1.f + z * (1.f - gate)), count);
          }
        }
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

// The inputs a block of channels sees, from K frames before the first one on: in[K + t] is that of frame t.
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

// One further frame, with a width that the compiler knows: nothing leaves the registers.
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
void ausm_scan_forward(const Scan* a) { a->bfloat16 ? scan_forward<BFloat16>(*a) : scan_forward<float>(*a); }
void ausm_scan_backward(const Scan* a) { a->bfloat16 ? scan_backward<BFloat16>(*a) : scan_backward<float>(*a); }
void ausm_conv_forward(const Conv* a) { a->bfloat16 ? conv_forward<BFloat16>(*a) : conv_forward<float>(*a); }
void ausm_conv_backward(const Conv* a) { a->bfloat16 ? conv_backward<BFloat16>(*a) : conv_backward<float>(*a); }
}
