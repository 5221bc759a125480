// SPDX-License-Identifier: Apache-2.0
//
// NEON, which every 64-bit ARM processor has; pair.h says what of.

#ifndef LNBP_ONNX_NEON_H_
#define LNBP_ONNX_NEON_H_

#include <arm_neon.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "element_types.h"
#include "inline.h"
#include "pair.h"

namespace lnbp::neon {

struct Floats {
  using Number = float;
  static constexpr std::size_t kSize = 4;
  using Masks = Counts<kSize>;
  using Copy = PartialCopy<float, kSize>;

  float32x4_t v;

  static LNBP_INLINE Floats Zeros() { return {vdupq_n_f32(0)}; }
  static LNBP_INLINE Floats Of(float value) { return {vdupq_n_f32(value)}; }
  // By way of bytes: a pointer to float promises its alignment.
  static LNBP_INLINE Floats Load(const float* from) {
    return {vreinterpretq_f32_u8(
        vld1q_u8(reinterpret_cast<const std::uint8_t*>(from)))};
  }
  static LNBP_INLINE Floats Load(const float* from, std::size_t count) {
    return Load(Copy::Of(from, count).elements);
  }
  static LNBP_INLINE void Store(float* to, Floats x) {
    vst1q_u8(reinterpret_cast<std::uint8_t*>(to), vreinterpretq_u8_f32(x.v));
  }
  static LNBP_INLINE void Store(float* to, Floats x, std::size_t count) {
    Copy copy;
    Store(copy.elements, x);
    copy.CopyTo(to, count);
  }
  static LNBP_INLINE void Stream(float* to, Floats x) { Store(to, x); }
  static LNBP_INLINE Floats Keep(Floats x, std::size_t count) {
    constexpr std::uint32_t kLanes[] = {0, 1, 2, 3};
    const uint32x4_t mask = vcltq_u32(
        vld1q_u32(kLanes), vdupq_n_u32(static_cast<std::uint32_t>(count)));
    return {vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(x.v), mask))};
  }
};

LNBP_INLINE Floats operator+(Floats x, Floats y) {
  return {vaddq_f32(x.v, y.v)};
}
LNBP_INLINE Floats operator*(Floats x, Floats y) {
  return {vmulq_f32(x.v, y.v)};
}
LNBP_INLINE Floats MulAdd(Floats x, Floats y, Floats z) {
  return {vfmaq_f32(z.v, x.v, y.v)};
}
LNBP_INLINE void SumLanes(const Floats* v, double* sums) {
  const float32x4_t all =
      vpaddq_f32(vpaddq_f32(v[0].v, v[1].v), vpaddq_f32(v[2].v, v[3].v));
  vst1q_f64(sums, vcvt_f64_f32(vget_low_f32(all)));
  vst1q_f64(sums + 2, vcvt_high_f64_f32(all));
}

struct Doubles {
  using Number = double;
  static constexpr std::size_t kSize = 2;
  using Masks = Counts<kSize>;
  using Copy = PartialCopy<double, kSize>;

  float64x2_t v;

  static LNBP_INLINE Doubles Zeros() { return {vdupq_n_f64(0)}; }
  static LNBP_INLINE Doubles Of(double value) { return {vdupq_n_f64(value)}; }
  static LNBP_INLINE Doubles Load(const double* from) {
    return {vreinterpretq_f64_u8(
        vld1q_u8(reinterpret_cast<const std::uint8_t*>(from)))};
  }
  static LNBP_INLINE Doubles Load(const double* from, std::size_t count) {
    return Load(Copy::Of(from, count).elements);
  }
  static LNBP_INLINE void Store(double* to, Doubles x) {
    vst1q_u8(reinterpret_cast<std::uint8_t*>(to), vreinterpretq_u8_f64(x.v));
  }
  static LNBP_INLINE void Store(double* to, Doubles x, std::size_t count) {
    Copy copy;
    Store(copy.elements, x);
    copy.CopyTo(to, count);
  }
  static LNBP_INLINE void Stream(double* to, Doubles x) { Store(to, x); }
  static LNBP_INLINE Doubles Keep(Doubles x, std::size_t count) {
    constexpr std::uint64_t kLanes[] = {0, 1};
    const uint64x2_t mask =
        vcltq_u64(vld1q_u64(kLanes), vdupq_n_u64(std::uint64_t{count}));
    return {vreinterpretq_f64_u64(vandq_u64(vreinterpretq_u64_f64(x.v), mask))};
  }
};

LNBP_INLINE Doubles operator+(Doubles x, Doubles y) {
  return {vaddq_f64(x.v, y.v)};
}
LNBP_INLINE Doubles operator*(Doubles x, Doubles y) {
  return {vmulq_f64(x.v, y.v)};
}
LNBP_INLINE Doubles MulAdd(Doubles x, Doubles y, Doubles z) {
  return {vfmaq_f64(z.v, x.v, y.v)};
}
LNBP_INLINE void SumLanes(const Doubles* v, double* sums) {
  vst1q_f64(sums, vpaddq_f64(v[0].v, v[1].v));
  vst1q_f64(sums + 2, vpaddq_f64(v[2].v, v[3].v));
}

// The 8 half-precision numbers of a register.
using Halves = PartialCopy<std::uint16_t, 8>;

LNBP_INLINE uint16x8_t LoadHalves(const void* from, Whole) {
  return vreinterpretq_u16_u8(vld1q_u8(static_cast<const std::uint8_t*>(from)));
}
LNBP_INLINE uint16x8_t LoadHalves(const void* from, First part) {
  return LoadHalves(Halves::Of(from, part.count).elements, Whole{});
}
LNBP_INLINE void StoreHalves(void* to, uint16x8_t halves, Whole) {
  vst1q_u8(static_cast<std::uint8_t*>(to), vreinterpretq_u8_u16(halves));
}
LNBP_INLINE void StoreHalves(void* to, uint16x8_t halves, First part) {
  Halves copy;
  StoreHalves(copy.elements, halves, Whole{});
  copy.CopyTo(to, part.count);
}

// `Conversion` of four numbers: Widen and Round.
template <typename T, typename Conversion>
struct HalfElements {
  using Vector = Pair<Floats>;
  using Columns = PairElements<Floats>;

  template <typename Part>
  static LNBP_INLINE Vector Load(const T* from, Part part) {
    const uint16x8_t halves = LoadHalves(from, part);
    return {{Conversion::Widen(vget_low_u16(halves))},
            {Conversion::Widen(vget_high_u16(halves))}};
  }
  template <typename Part>
  static LNBP_INLINE void Store(T* to, Vector v, Part part) {
    StoreHalves(
        to, vcombine_u16(Conversion::Round(v.a.v), Conversion::Round(v.b.v)),
        part);
  }
  static LNBP_INLINE void Stream(T* to, Vector v) { Store(to, v, Whole{}); }
};

struct Float16Conversion {
  static LNBP_INLINE float32x4_t Widen(uint16x4_t halves) {
    return vcvt_f32_f16(vreinterpret_f16_u16(halves));
  }
  static LNBP_INLINE uint16x4_t Round(float32x4_t v) {
    return vreinterpret_u16_f16(vcvt_f16_f32(v));
  }
};

struct Bfloat16Conversion {
  static LNBP_INLINE float32x4_t Widen(uint16x4_t halves) {
    return vreinterpretq_f32_u32(vshll_n_u16(halves, 16));
  }
  // To nearest, ties to even; a NaN stays a (quiet) NaN.
  static LNBP_INLINE uint16x4_t Round(float32x4_t v) {
    const uint32x4_t bits = vreinterpretq_u32_f32(v);
    const uint32x4_t last = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    const uint32x4_t rounded =
        vaddq_u32(vaddq_u32(bits, vdupq_n_u32(0x7fff)), last);
    const uint32x4_t quiet = vorrq_u32(bits, vdupq_n_u32(0x400000));
    return vshrn_n_u32(vbslq_u32(vceqq_f32(v, v), rounded, quiet), 16);
  }
};

template <typename T>
struct Elements;

template <>
struct Elements<float> : PairElements<Floats> {};

template <>
struct Elements<double> : PairElements<Doubles> {};

template <>
struct Elements<Float16> : HalfElements<Float16, Float16Conversion> {};

template <>
struct Elements<Bfloat16> : HalfElements<Bfloat16, Bfloat16Conversion> {};

struct Isa {
  template <typename T>
  using Elements = neon::Elements<T>;

  // 32 registers hold the sums of four rows.
  static constexpr std::size_t kRowsAtOnce = 4;
  static constexpr bool kSumsAhead = false;

  static LNBP_INLINE void Prefetch(const void* address) {
    __builtin_prefetch(address);
  }
  // C++ has no name for stores past the cache here: Stream and StreamLine store
  // as Store does.
  static LNBP_INLINE void StreamLine(void* to, const void* from) {
    std::memcpy(to, from, 64);
  }
  static LNBP_INLINE void FinishStores() {}
};

}  // namespace lnbp::neon

#endif  // LNBP_ONNX_NEON_H_
