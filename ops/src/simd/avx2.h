// SPDX-License-Identifier: Apache-2.0
//
// AVX2, with FMA and F16C; pair.h says what of.

#ifndef LNBP_ONNX_AVX2_H_
#define LNBP_ONNX_AVX2_H_

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "element_types.h"
#include "pair.h"
#include "x86_memory.h"

namespace lnbp::avx2 {

// All bits of the first `count` 32-bit lanes.
LNBP_INLINE __m256i FirstLanes(std::size_t count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)),
                            _mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0));
}

// Of a register the first `bytes`, which are even. Stores with a mask, which
// there are, take longer than these.
LNBP_INLINE void StoreBytes(void* to, __m256i bits, std::size_t bytes) {
  auto* at = static_cast<unsigned char*>(to);
  if (bytes >= 32) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), bits);
    return;
  }
  __m128i half = _mm256_castsi256_si128(bits);
  if (bytes & 16) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(at), half);
    half = _mm256_extracti128_si256(bits, 1);
    at += 16;
  }
  if (bytes & 8) {
    _mm_storel_epi64(reinterpret_cast<__m128i*>(at), half);
    half = _mm_srli_si128(half, 8);
    at += 8;
  }
  auto rest = static_cast<std::uint64_t>(_mm_cvtsi128_si64(half));
  if (bytes & 4) {
    StoreElement(at, 0, static_cast<std::uint32_t>(rest));
    rest >>= 32;
    at += 4;
  }
  if (bytes & 2) StoreElement(at, 0, static_cast<std::uint16_t>(rest));
}

struct Floats {
  using Number = float;
  static constexpr std::size_t kSize = 8;

  using Masks = Counts<kSize>;

  __m256 v;

  static LNBP_INLINE Floats Zeros() { return {_mm256_setzero_ps()}; }
  static LNBP_INLINE Floats Of(float value) { return {_mm256_set1_ps(value)}; }
  static LNBP_INLINE Floats Load(const float* from) {
    return {_mm256_loadu_ps(from)};
  }
  static LNBP_INLINE Floats Load(const float* from, std::size_t count) {
    return {_mm256_maskload_ps(from, FirstLanes(count))};
  }
  static LNBP_INLINE void Store(float* to, Floats x) {
    _mm256_storeu_ps(to, x.v);
  }
  static LNBP_INLINE void Store(float* to, Floats x, std::size_t count) {
    StoreBytes(to, _mm256_castps_si256(x.v), count * sizeof(float));
  }
  static LNBP_INLINE void Stream(float* to, Floats x) {
    _mm256_stream_ps(to, x.v);
  }
  static LNBP_INLINE Floats Keep(Floats x, std::size_t count) {
    return {_mm256_and_ps(x.v, _mm256_castsi256_ps(FirstLanes(count)))};
  }
};

LNBP_INLINE Floats operator+(Floats x, Floats y) {
  return {_mm256_add_ps(x.v, y.v)};
}
LNBP_INLINE Floats operator*(Floats x, Floats y) {
  return {_mm256_mul_ps(x.v, y.v)};
}
LNBP_INLINE Floats MulAdd(Floats x, Floats y, Floats z) {
  return {_mm256_fmadd_ps(x.v, y.v, z.v)};
}
LNBP_INLINE void SumLanes(const Floats* v, double* sums) {
  const __m256 v01 = _mm256_add_ps(_mm256_unpacklo_ps(v[0].v, v[1].v),
                                   _mm256_unpackhi_ps(v[0].v, v[1].v));
  const __m256 v23 = _mm256_add_ps(_mm256_unpacklo_ps(v[2].v, v[3].v),
                                   _mm256_unpackhi_ps(v[2].v, v[3].v));
  const __m256 half = _mm256_add_ps(_mm256_shuffle_ps(v01, v23, 0x44),
                                    _mm256_shuffle_ps(v01, v23, 0xee));
  const __m128 quarter =
      _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  _mm256_storeu_pd(sums, _mm256_cvtps_pd(quarter));
}

struct Doubles {
  using Number = double;
  static constexpr std::size_t kSize = 4;

  using Masks = Counts<kSize>;

  __m256d v;

  static LNBP_INLINE Doubles Zeros() { return {_mm256_setzero_pd()}; }
  static LNBP_INLINE Doubles Of(double value) {
    return {_mm256_set1_pd(value)};
  }
  static LNBP_INLINE Doubles Load(const double* from) {
    return {_mm256_loadu_pd(from)};
  }
  static LNBP_INLINE Doubles Load(const double* from, std::size_t count) {
    return {_mm256_maskload_pd(from, FirstLanes(2 * count))};
  }
  static LNBP_INLINE void Store(double* to, Doubles x) {
    _mm256_storeu_pd(to, x.v);
  }
  static LNBP_INLINE void Store(double* to, Doubles x, std::size_t count) {
    StoreBytes(to, _mm256_castpd_si256(x.v), count * sizeof(double));
  }
  static LNBP_INLINE void Stream(double* to, Doubles x) {
    _mm256_stream_pd(to, x.v);
  }
  static LNBP_INLINE Doubles Keep(Doubles x, std::size_t count) {
    return {_mm256_and_pd(x.v, _mm256_castsi256_pd(FirstLanes(2 * count)))};
  }
};

LNBP_INLINE Doubles operator+(Doubles x, Doubles y) {
  return {_mm256_add_pd(x.v, y.v)};
}
LNBP_INLINE Doubles operator*(Doubles x, Doubles y) {
  return {_mm256_mul_pd(x.v, y.v)};
}
LNBP_INLINE Doubles MulAdd(Doubles x, Doubles y, Doubles z) {
  return {_mm256_fmadd_pd(x.v, y.v, z.v)};
}
LNBP_INLINE void SumLanes(const Doubles* v, double* sums) {
  const __m256d v01 = _mm256_add_pd(_mm256_unpacklo_pd(v[0].v, v[1].v),
                                    _mm256_unpackhi_pd(v[0].v, v[1].v));
  const __m256d v23 = _mm256_add_pd(_mm256_unpacklo_pd(v[2].v, v[3].v),
                                    _mm256_unpackhi_pd(v[2].v, v[3].v));
  _mm256_storeu_pd(sums, _mm256_add_pd(_mm256_permute2f128_pd(v01, v23, 0x20),
                                       _mm256_permute2f128_pd(v01, v23, 0x31)));
}

template <typename T>
struct Elements;

template <>
struct Elements<float> : PairElements<Floats> {};

template <>
struct Elements<double> : PairElements<Doubles> {};

// The 16 half-precision numbers of a register.
LNBP_INLINE __m256i LoadHalves(const void* from, Whole) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(from));
}
LNBP_INLINE __m256i LoadHalves(const void* from, First part) {
  // There are masks for pairs of them; the last one may have no pair.
  const __m256i pairs = _mm256_maskload_epi32(static_cast<const int*>(from),
                                              FirstLanes(part.count / 2));
  const std::size_t last = part.count - 1;
  const __m256i lanes =
      _mm256_set_epi16(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  return _mm256_blendv_epi8(
      pairs, _mm256_set1_epi16(LoadElement<std::int16_t>(from, last)),
      _mm256_cmpeq_epi16(lanes, _mm256_set1_epi16(static_cast<short>(last))));
}
LNBP_INLINE void StoreHalves(void* to, __m256i halves, Whole) {
  _mm256_storeu_si256(static_cast<__m256i*>(to), halves);
}
LNBP_INLINE void StoreHalves(void* to, __m256i halves, First part) {
  StoreBytes(to, halves, part.count * sizeof(std::uint16_t));
}
LNBP_INLINE void StreamHalves(void* to, __m256i halves) {
  _mm256_stream_si256(static_cast<__m256i*>(to), halves);
}

template <>
struct Elements<Float16> {
  using Vector = Pair<Floats>;
  using Columns = PairElements<Floats>;

  static LNBP_INLINE Vector Load(const Float16* from, Whole) {
    const auto* halves = reinterpret_cast<const __m128i*>(from);
    return {Widen(_mm_loadu_si128(halves)), Widen(_mm_loadu_si128(halves + 1))};
  }
  static LNBP_INLINE Vector Load(const Float16* from, First part) {
    const __m256i halves = LoadHalves(from, part);
    return {Widen(_mm256_castsi256_si128(halves)),
            Widen(_mm256_extracti128_si256(halves, 1))};
  }
  template <typename Part>
  static LNBP_INLINE void Store(Float16* to, Vector v, Part part) {
    StoreHalves(to, Round(v), part);
  }
  static LNBP_INLINE void Stream(Float16* to, Vector v) {
    StreamHalves(to, Round(v));
  }

 private:
  static LNBP_INLINE Floats Widen(__m128i halves) {
    return {_mm256_cvtph_ps(halves)};
  }
  static LNBP_INLINE __m256i Round(Vector v) {
    return _mm256_inserti128_si256(
        _mm256_castsi128_si256(
            _mm256_cvtps_ph(v.a.v, _MM_FROUND_TO_NEAREST_INT)),
        _mm256_cvtps_ph(v.b.v, _MM_FROUND_TO_NEAREST_INT), 1);
  }
};

template <>
struct Elements<Bfloat16> {
  using Vector = Pair<Floats>;
  using Columns = PairElements<Floats>;

  static LNBP_INLINE Vector Load(const Bfloat16* from, Whole) {
    const auto* halves = reinterpret_cast<const __m128i*>(from);
    return {Widen(_mm_loadu_si128(halves)), Widen(_mm_loadu_si128(halves + 1))};
  }
  static LNBP_INLINE Vector Load(const Bfloat16* from, First part) {
    const __m256i halves = LoadHalves(from, part);
    return {Widen(_mm256_castsi256_si128(halves)),
            Widen(_mm256_extracti128_si256(halves, 1))};
  }
  template <typename Part>
  static LNBP_INLINE void Store(Bfloat16* to, Vector v, Part part) {
    StoreHalves(to, Round(v), part);
  }
  static LNBP_INLINE void Stream(Bfloat16* to, Vector v) {
    StreamHalves(to, Round(v));
  }

 private:
  static LNBP_INLINE Floats Widen(__m128i halves) {
    return {_mm256_castsi256_ps(
        _mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16))};
  }
  static LNBP_INLINE __m256i Round(Vector v) {
    __m256i a = RoundNumbers(v.a.v);
    __m256i b = RoundNumbers(v.b.v);
    if (_mm256_movemask_ps(_mm256_cmp_ps(v.a.v, v.b.v, _CMP_UNORD_Q)) != 0) {
      a = KeepNan(v.a.v, a);
      b = KeepNan(v.b.v, b);
    }
    // Packs the lower halves of both registers, then the upper ones.
    return _mm256_permute4x64_epi64(
        _mm256_packus_epi32(_mm256_srli_epi32(a, 16), _mm256_srli_epi32(b, 16)),
        0xd8);
  }
  // To nearest, ties to even, in the upper half.
  static LNBP_INLINE __m256i RoundNumbers(__m256 v) {
    const __m256i bits = _mm256_castps_si256(v);
    const __m256i last =
        _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    return _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)),
                            last);
  }
  static LNBP_INLINE __m256i KeepNan(__m256 v, __m256i rounded) {
    const __m256i is_nan =
        _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    const __m256i quiet =
        _mm256_or_si256(_mm256_castps_si256(v), _mm256_set1_epi32(0x400000));
    return _mm256_blendv_epi8(rounded, quiet, is_nan);
  }
};

struct Isa : X86Memory {
  template <typename T>
  using Elements = avx2::Elements<T>;

  // 16 registers hold the sums of two rows.
  static constexpr std::size_t kRowsAtOnce = 2;
  static constexpr bool kSumsAhead = true;
};

}  // namespace lnbp::avx2

#endif  // LNBP_ONNX_AVX2_H_
