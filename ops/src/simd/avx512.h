// SPDX-License-Identifier: Apache-2.0
//
// AVX-512 (F, BW, DQ, VL); pair.h says what of. A pair is 32 elements of a half
// type, one cache line.

#ifndef LNBP_ONNX_AVX512_H_
#define LNBP_ONNX_AVX512_H_

#include <immintrin.h>

#include <cstddef>

#include "element_types.h"
#include "pair.h"
#include "x86_memory.h"

namespace lnbp::avx512 {

// Sets the first `count` bits, none where it is negative.
LNBP_INLINE __mmask32 FirstBits(std::ptrdiff_t count) {
  if (count <= 0) return 0;
  return count >= 32 ? ~__mmask32{0} : (__mmask32{1} << count) - 1;
}

struct Floats {
  using Number = float;
  static constexpr std::size_t kSize = 16;

  struct Masks {
    __mmask16 a;
    __mmask16 b;

    static LNBP_INLINE Masks Of(std::size_t count) {
      const __mmask32 bits = FirstBits(static_cast<std::ptrdiff_t>(count));
      return {static_cast<__mmask16>(bits), static_cast<__mmask16>(bits >> 16)};
    }
  };

  __m512 v;

  static LNBP_INLINE Floats Zeros() { return {_mm512_setzero_ps()}; }
  static LNBP_INLINE Floats Of(float value) { return {_mm512_set1_ps(value)}; }
  static LNBP_INLINE Floats Load(const float* from) {
    return {_mm512_loadu_ps(from)};
  }
  static LNBP_INLINE Floats Load(const float* from, __mmask16 mask) {
    return {_mm512_maskz_loadu_ps(mask, from)};
  }
  static LNBP_INLINE void Store(float* to, Floats x) {
    _mm512_storeu_ps(to, x.v);
  }
  static LNBP_INLINE void Store(float* to, Floats x, __mmask16 mask) {
    _mm512_mask_storeu_ps(to, mask, x.v);
  }
  static LNBP_INLINE void Stream(float* to, Floats x) {
    _mm512_stream_ps(to, x.v);
  }
  static LNBP_INLINE Floats Keep(Floats x, __mmask16 mask) {
    return {_mm512_maskz_mov_ps(mask, x.v)};
  }
};

LNBP_INLINE Floats operator+(Floats x, Floats y) {
  return {_mm512_add_ps(x.v, y.v)};
}
LNBP_INLINE Floats operator*(Floats x, Floats y) {
  return {_mm512_mul_ps(x.v, y.v)};
}
LNBP_INLINE Floats MulAdd(Floats x, Floats y, Floats z) {
  return {_mm512_fmadd_ps(x.v, y.v, z.v)};
}
// By transposing: 14 shuffles and additions instead of 4 x 8.
LNBP_INLINE void SumLanes(const Floats* v, double* sums) {
  const __m512 v01 = _mm512_add_ps(_mm512_unpacklo_ps(v[0].v, v[1].v),
                                   _mm512_unpackhi_ps(v[0].v, v[1].v));
  const __m512 v23 = _mm512_add_ps(_mm512_unpacklo_ps(v[2].v, v[3].v),
                                   _mm512_unpackhi_ps(v[2].v, v[3].v));
  const __m512 v0123 = _mm512_add_ps(_mm512_shuffle_ps(v01, v23, 0x44),
                                     _mm512_shuffle_ps(v01, v23, 0xee));
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(v0123),
                                    _mm512_extractf32x8_ps(v0123, 1));
  const __m128 quarter =
      _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  _mm256_storeu_pd(sums, _mm256_cvtps_pd(quarter));
}

struct Doubles {
  using Number = double;
  static constexpr std::size_t kSize = 8;

  struct Masks {
    __mmask8 a;
    __mmask8 b;

    static LNBP_INLINE Masks Of(std::size_t count) {
      const __mmask32 bits = FirstBits(static_cast<std::ptrdiff_t>(count));
      return {static_cast<__mmask8>(bits), static_cast<__mmask8>(bits >> 8)};
    }
  };

  __m512d v;

  static LNBP_INLINE Doubles Zeros() { return {_mm512_setzero_pd()}; }
  static LNBP_INLINE Doubles Of(double value) {
    return {_mm512_set1_pd(value)};
  }
  static LNBP_INLINE Doubles Load(const double* from) {
    return {_mm512_loadu_pd(from)};
  }
  static LNBP_INLINE Doubles Load(const double* from, __mmask8 mask) {
    return {_mm512_maskz_loadu_pd(mask, from)};
  }
  static LNBP_INLINE void Store(double* to, Doubles x) {
    _mm512_storeu_pd(to, x.v);
  }
  static LNBP_INLINE void Store(double* to, Doubles x, __mmask8 mask) {
    _mm512_mask_storeu_pd(to, mask, x.v);
  }
  static LNBP_INLINE void Stream(double* to, Doubles x) {
    _mm512_stream_pd(to, x.v);
  }
  static LNBP_INLINE Doubles Keep(Doubles x, __mmask8 mask) {
    return {_mm512_maskz_mov_pd(mask, x.v)};
  }
};

LNBP_INLINE Doubles operator+(Doubles x, Doubles y) {
  return {_mm512_add_pd(x.v, y.v)};
}
LNBP_INLINE Doubles operator*(Doubles x, Doubles y) {
  return {_mm512_mul_pd(x.v, y.v)};
}
LNBP_INLINE Doubles MulAdd(Doubles x, Doubles y, Doubles z) {
  return {_mm512_fmadd_pd(x.v, y.v, z.v)};
}
LNBP_INLINE void SumLanes(const Doubles* v, double* sums) {
  const __m512d v01 = _mm512_add_pd(_mm512_unpacklo_pd(v[0].v, v[1].v),
                                    _mm512_unpackhi_pd(v[0].v, v[1].v));
  const __m512d v23 = _mm512_add_pd(_mm512_unpacklo_pd(v[2].v, v[3].v),
                                    _mm512_unpackhi_pd(v[2].v, v[3].v));
  const __m256d half01 = _mm256_add_pd(_mm512_castpd512_pd256(v01),
                                       _mm512_extractf64x4_pd(v01, 1));
  const __m256d half23 = _mm256_add_pd(_mm512_castpd512_pd256(v23),
                                       _mm512_extractf64x4_pd(v23, 1));
  _mm256_storeu_pd(sums,
                   _mm256_add_pd(_mm256_permute2f128_pd(half01, half23, 0x20),
                                 _mm256_permute2f128_pd(half01, half23, 0x31)));
}

template <typename T>
struct Elements;

// The tensors are read 32 bytes at a time: a load of 64 that waits for memory
// costs more, above all across two lines, as all of them are in the arrays of
// NumPy, which begin 16 bytes past a line.
LNBP_INLINE Floats LoadInTwo(const float* from) {
  return {_mm512_insertf32x8(_mm512_castps256_ps512(_mm256_loadu_ps(from)),
                             _mm256_loadu_ps(from + 8), 1)};
}
LNBP_INLINE Doubles LoadInTwo(const double* from) {
  return {_mm512_insertf64x4(_mm512_castpd256_pd512(_mm256_loadu_pd(from)),
                             _mm256_loadu_pd(from + 4), 1)};
}

template <typename Register>
struct ElementsInTwo : PairElements<Register> {
  using PairElements<Register>::Load;
  static LNBP_INLINE Pair<Register> Load(const typename Register::Number* from,
                                         Whole) {
    return {LoadInTwo(from), LoadInTwo(from + Register::kSize)};
  }
};

template <>
struct Elements<float> : ElementsInTwo<Floats> {};

template <>
struct Elements<double> : ElementsInTwo<Doubles> {};

// The 32 half-precision numbers of a register.
LNBP_INLINE __m512i LoadHalves(const void* from, Whole) {
  const auto* const half = static_cast<const __m256i*>(from);
  return _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_loadu_si256(half)),
                            _mm256_loadu_si256(half + 1), 1);
}
LNBP_INLINE __m512i LoadHalves(const void* from, First part) {
  return _mm512_maskz_loadu_epi16(
      FirstBits(static_cast<std::ptrdiff_t>(part.count)), from);
}
LNBP_INLINE void StoreHalves(void* to, __m512i halves, Whole) {
  _mm512_storeu_si512(to, halves);
}
LNBP_INLINE void StoreHalves(void* to, __m512i halves, First part) {
  _mm512_mask_storeu_epi16(
      to, FirstBits(static_cast<std::ptrdiff_t>(part.count)), halves);
}
LNBP_INLINE void StreamHalves(void* to, __m512i halves) {
  _mm512_stream_si512(static_cast<__m512i*>(to), halves);
}

template <>
struct Elements<Float16> {
  using Vector = Pair<Floats>;
  using Columns = PairElements<Floats>;

  static LNBP_INLINE Vector Load(const Float16* from, Whole) {
    const auto* halves = reinterpret_cast<const __m256i*>(from);
    return {Widen(_mm256_loadu_si256(halves)),
            Widen(_mm256_loadu_si256(halves + 1))};
  }
  static LNBP_INLINE Vector Load(const Float16* from, First part) {
    const __m512i halves = LoadHalves(from, part);
    return {Widen(_mm512_castsi512_si256(halves)),
            Widen(_mm512_extracti64x4_epi64(halves, 1))};
  }
  template <typename Part>
  static LNBP_INLINE void Store(Float16* to, Vector v, Part part) {
    StoreHalves(to, Round(v), part);
  }
  static LNBP_INLINE void Stream(Float16* to, Vector v) {
    StreamHalves(to, Round(v));
  }

 private:
  static LNBP_INLINE Floats Widen(__m256i halves) {
    return {_mm512_cvtph_ps(halves)};
  }
  static LNBP_INLINE __m512i Round(Vector v) {
    constexpr int kToNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    return _mm512_inserti64x4(
        _mm512_castsi256_si512(_mm512_cvtps_ph(v.a.v, kToNearest)),
        _mm512_cvtps_ph(v.b.v, kToNearest), 1);
  }
};

// The even columns in the first register, the odd ones in the second: a shift
// and a mask then do for a conversion, where whole halves would be shuffled.
struct EvenOdd {
  using InOrder = PairElements<Floats>;

  template <typename Part>
  static LNBP_INLINE Pair<Floats> Load(const float* from, Part part) {
    const Pair<Floats> pair = InOrder::Load(from, part);
    const __m512i even = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14,
                                          12, 10, 8, 6, 4, 2, 0);
    const __m512i odd = _mm512_set_epi32(31, 29, 27, 25, 23, 21, 19, 17, 15, 13,
                                         11, 9, 7, 5, 3, 1);
    return {Permute(pair, even), Permute(pair, odd)};
  }
  template <typename Part>
  static LNBP_INLINE void Store(float* to, Pair<Floats> pair, Part part) {
    const __m512i low = _mm512_set_epi32(23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18,
                                         2, 17, 1, 16, 0);
    const __m512i high = _mm512_set_epi32(31, 15, 30, 14, 29, 13, 28, 12, 27,
                                          11, 26, 10, 25, 9, 24, 8);
    InOrder::Store(to, {Permute(pair, low), Permute(pair, high)}, part);
  }
  static LNBP_INLINE Pair<Floats> Keep(Pair<Floats> pair, First part) {
    const auto count = static_cast<std::ptrdiff_t>(part.count);
    return {Floats::Keep(pair.a,
                         static_cast<__mmask16>(FirstBits((count + 1) / 2))),
            Floats::Keep(pair.b, static_cast<__mmask16>(FirstBits(count / 2)))};
  }

 private:
  static LNBP_INLINE Floats Permute(Pair<Floats> pair, __m512i lanes) {
    return {_mm512_permutex2var_ps(pair.a.v, lanes, pair.b.v)};
  }
};

// To nearest, ties to even; the even columns in the lower halves.
struct RoundingToBfloat16 {
  static LNBP_INLINE __m512i Round(Pair<Floats> v) {
    __m512i even = RoundNumbers(v.a.v);
    __m512i odd = RoundNumbers(v.b.v);
    if (_mm512_cmp_ps_mask(v.a.v, v.b.v, _CMP_UNORD_Q) != 0) {
      even = KeepNan(v.a.v, even);
      odd = KeepNan(v.b.v, odd);
    }
    return _mm512_mask_blend_epi16(0xaaaaaaaau, _mm512_srli_epi32(even, 16),
                                   odd);
  }

 private:
  // In the upper half.
  static LNBP_INLINE __m512i RoundNumbers(__m512 v) {
    const __m512i bits = _mm512_castps_si512(v);
    const __m512i last =
        _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    return _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)),
                            last);
  }
  static LNBP_INLINE __m512i KeepNan(__m512 v, __m512i rounded) {
    return _mm512_mask_or_epi32(rounded, _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q),
                                _mm512_castps_si512(v),
                                _mm512_set1_epi32(0x400000));
  }
};

template <typename Rounding>
struct Bfloat16Elements {
  using Vector = Pair<Floats>;
  using Columns = EvenOdd;

  template <typename Part>
  static LNBP_INLINE Vector Load(const Bfloat16* from, Part part) {
    const __m512i halves = LoadHalves(from, part);
    return {{_mm512_castsi512_ps(_mm512_slli_epi32(halves, 16))},
            {_mm512_castsi512_ps(_mm512_and_si512(halves, UpperHalves()))}};
  }
  template <typename Part>
  static LNBP_INLINE void Store(Bfloat16* to, Vector v, Part part) {
    StoreHalves(to, Rounding::Round(v), part);
  }
  static LNBP_INLINE void Stream(Bfloat16* to, Vector v) {
    StreamHalves(to, Rounding::Round(v));
  }

 private:
  static LNBP_INLINE __m512i UpperHalves() {
    return _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  }
};

template <>
struct Elements<Bfloat16> : Bfloat16Elements<RoundingToBfloat16> {};

struct Isa : X86Memory {
  template <typename T>
  using Elements = avx512::Elements<T>;

  static constexpr std::size_t kRowsAtOnce = 4;
  // It does not pay here: docs/tuning.md.
  static constexpr bool kSumsAhead = false;

  static LNBP_INLINE void StreamLine(void* to, const void* from) {
    _mm512_stream_si512(static_cast<__m512i*>(to), _mm512_loadu_si512(from));
  }
};

}  // namespace lnbp::avx512

#endif  // LNBP_ONNX_AVX512_H_
