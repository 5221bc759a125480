// SPDX-License-Identifier: Apache-2.0
//
// Vectors of two AVX-512 registers, with the operations that simd_steps.h
// needs. A pair is 32 elements of a half type, one cache line, and gives two
// independent chains of additions.

#ifndef LNBP_ONNX_SIMD_AVX512_H_
#define LNBP_ONNX_SIMD_AVX512_H_

#include <immintrin.h>

#include <cstddef>

#include "element_types.h"
#include "simd.h"

namespace lnbp::avx512 {

// Sets the first `count` bits, none where it is negative.
LNBP_INLINE __mmask32 FirstBits(std::ptrdiff_t count) {
  if (count <= 0) return 0;
  return count >= 32 ? ~__mmask32{0} : (__mmask32{1} << count) - 1;
}

struct Floats {
  __m512 a;
  __m512 b;

  static constexpr std::size_t kSize = 32;
  static constexpr std::size_t kRowsAtOnce = 4;
  static constexpr bool kSumsAhead = false;  // not measured

  static LNBP_INLINE Floats Zeros() {
    return {_mm512_setzero_ps(), _mm512_setzero_ps()};
  }

  // A vector whose lanes are all one number: half the registers.
  struct Uniform {
    __m512 a;

    static LNBP_INLINE Uniform Of(float value) {
      return {_mm512_set1_ps(value)};
    }
  };
};

LNBP_INLINE Floats operator+(Floats x, Floats y) {
  return {_mm512_add_ps(x.a, y.a), _mm512_add_ps(x.b, y.b)};
}
LNBP_INLINE Floats operator*(Floats x, Floats y) {
  return {_mm512_mul_ps(x.a, y.a), _mm512_mul_ps(x.b, y.b)};
}
// x * y + z
LNBP_INLINE Floats MulAdd(Floats x, Floats y, Floats z) {
  return {_mm512_fmadd_ps(x.a, y.a, z.a), _mm512_fmadd_ps(x.b, y.b, z.b)};
}
LNBP_INLINE Floats operator+(Floats x, Floats::Uniform y) {
  return {_mm512_add_ps(x.a, y.a), _mm512_add_ps(x.b, y.a)};
}
LNBP_INLINE Floats operator*(Floats x, Floats::Uniform y) {
  return {_mm512_mul_ps(x.a, y.a), _mm512_mul_ps(x.b, y.a)};
}
LNBP_INLINE Floats MulAdd(Floats x, Floats::Uniform y, Floats z) {
  return {_mm512_fmadd_ps(x.a, y.a, z.a), _mm512_fmadd_ps(x.b, y.a, z.b)};
}
LNBP_INLINE Floats MulAdd(Floats x, Floats::Uniform y, Floats::Uniform z) {
  return {_mm512_fmadd_ps(x.a, y.a, z.a), _mm512_fmadd_ps(x.b, y.a, z.a)};
}
// The sums over the lanes of four vectors, by transposing: 14 shuffles and
// additions instead of 4 x 8.
LNBP_INLINE void SumLanes(const Floats* vectors, double* sums) {
  __m512 v[4];
  for (int i = 0; i < 4; ++i) v[i] = _mm512_add_ps(vectors[i].a, vectors[i].b);
  const __m512 v01 = _mm512_add_ps(_mm512_unpacklo_ps(v[0], v[1]),
                                   _mm512_unpackhi_ps(v[0], v[1]));
  const __m512 v23 = _mm512_add_ps(_mm512_unpacklo_ps(v[2], v[3]),
                                   _mm512_unpackhi_ps(v[2], v[3]));
  const __m512 v0123 = _mm512_add_ps(_mm512_shuffle_ps(v01, v23, 0x44),
                                     _mm512_shuffle_ps(v01, v23, 0xee));
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(v0123),
                                    _mm512_extractf32x8_ps(v0123, 1));
  const __m128 quarter =
      _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  _mm256_storeu_pd(sums, _mm256_cvtps_pd(quarter));
}

struct Doubles {
  __m512d a;
  __m512d b;

  static constexpr std::size_t kSize = 16;
  static constexpr std::size_t kRowsAtOnce = 4;
  static constexpr bool kSumsAhead = false;  // not measured

  static LNBP_INLINE Doubles Zeros() {
    return {_mm512_setzero_pd(), _mm512_setzero_pd()};
  }

  // A vector whose lanes are all one number: half the registers.
  struct Uniform {
    __m512d a;

    static LNBP_INLINE Uniform Of(double value) {
      return {_mm512_set1_pd(value)};
    }
  };
};

LNBP_INLINE Doubles operator+(Doubles x, Doubles y) {
  return {_mm512_add_pd(x.a, y.a), _mm512_add_pd(x.b, y.b)};
}
LNBP_INLINE Doubles operator*(Doubles x, Doubles y) {
  return {_mm512_mul_pd(x.a, y.a), _mm512_mul_pd(x.b, y.b)};
}
LNBP_INLINE Doubles MulAdd(Doubles x, Doubles y, Doubles z) {
  return {_mm512_fmadd_pd(x.a, y.a, z.a), _mm512_fmadd_pd(x.b, y.b, z.b)};
}
LNBP_INLINE Doubles operator+(Doubles x, Doubles::Uniform y) {
  return {_mm512_add_pd(x.a, y.a), _mm512_add_pd(x.b, y.a)};
}
LNBP_INLINE Doubles operator*(Doubles x, Doubles::Uniform y) {
  return {_mm512_mul_pd(x.a, y.a), _mm512_mul_pd(x.b, y.a)};
}
LNBP_INLINE Doubles MulAdd(Doubles x, Doubles::Uniform y, Doubles z) {
  return {_mm512_fmadd_pd(x.a, y.a, z.a), _mm512_fmadd_pd(x.b, y.a, z.b)};
}
LNBP_INLINE Doubles MulAdd(Doubles x, Doubles::Uniform y, Doubles::Uniform z) {
  return {_mm512_fmadd_pd(x.a, y.a, z.a), _mm512_fmadd_pd(x.b, y.a, z.a)};
}
LNBP_INLINE void SumLanes(const Doubles* vectors, double* sums) {
  __m512d v[4];
  for (int i = 0; i < 4; ++i) v[i] = _mm512_add_pd(vectors[i].a, vectors[i].b);
  const __m512d v01 = _mm512_add_pd(_mm512_unpacklo_pd(v[0], v[1]),
                                    _mm512_unpackhi_pd(v[0], v[1]));
  const __m512d v23 = _mm512_add_pd(_mm512_unpacklo_pd(v[2], v[3]),
                                    _mm512_unpackhi_pd(v[2], v[3]));
  const __m256d half01 = _mm256_add_pd(_mm512_castpd512_pd256(v01),
                                       _mm512_extractf64x4_pd(v01, 1));
  const __m256d half23 = _mm256_add_pd(_mm512_castpd512_pd256(v23),
                                       _mm512_extractf64x4_pd(v23, 1));
  _mm256_storeu_pd(sums,
                   _mm256_add_pd(_mm256_permute2f128_pd(half01, half23, 0x20),
                                 _mm256_permute2f128_pd(half01, half23, 0x31)));
}

// How the elements of a type are read, as vectors of the compute type, and
// written. `Columns` does the same for the arrays of the compute type that lie
// beside a row, with the same column in the same lane.
template <typename T>
struct Elements;

// The tensors are read 32 bytes at a time: a load of 64 that waits for memory
// costs more, above all across two lines, as all of them are in the arrays of
// NumPy, which begin 16 bytes past a line. 1.4 x at 8192 x 1024 of float from
// such arrays, 1.1 x from others; but 0.9 x at 128 x 768 of bfloat16.
LNBP_INLINE __m512 LoadInTwo(const float* from) {
  return _mm512_insertf32x8(_mm512_castps256_ps512(_mm256_loadu_ps(from)),
                            _mm256_loadu_ps(from + 8), 1);
}
LNBP_INLINE __m512d LoadInTwo(const double* from) {
  return _mm512_insertf64x4(_mm512_castpd256_pd512(_mm256_loadu_pd(from)),
                            _mm256_loadu_pd(from + 4), 1);
}

struct FloatColumns {
  static LNBP_INLINE Floats Load(const float* from, Whole) {
    return {_mm512_loadu_ps(from), _mm512_loadu_ps(from + 16)};
  }
  static LNBP_INLINE Floats Load(const float* from, First part) {
    const __mmask32 mask = Mask(part);
    return {
        _mm512_maskz_loadu_ps(static_cast<__mmask16>(mask), from),
        _mm512_maskz_loadu_ps(static_cast<__mmask16>(mask >> 16), from + 16)};
  }
  static LNBP_INLINE void Store(float* to, Floats v, Whole) {
    _mm512_storeu_ps(to, v.a);
    _mm512_storeu_ps(to + 16, v.b);
  }
  static LNBP_INLINE void Store(float* to, Floats v, First part) {
    const __mmask32 mask = Mask(part);
    _mm512_mask_storeu_ps(to, static_cast<__mmask16>(mask), v.a);
    _mm512_mask_storeu_ps(to + 16, static_cast<__mmask16>(mask >> 16), v.b);
  }
  // v with zeros where there is no element.
  static LNBP_INLINE Floats Keep(Floats v, First part) {
    const __mmask32 mask = Mask(part);
    return {_mm512_maskz_mov_ps(static_cast<__mmask16>(mask), v.a),
            _mm512_maskz_mov_ps(static_cast<__mmask16>(mask >> 16), v.b)};
  }

 private:
  static LNBP_INLINE __mmask32 Mask(First part) {
    return FirstBits(static_cast<std::ptrdiff_t>(part.count));
  }
};

template <>
struct Elements<float> : FloatColumns {
  using Vector = Floats;
  using Columns = FloatColumns;

  using FloatColumns::Load;
  static LNBP_INLINE Floats Load(const float* from, Whole) {
    return {LoadInTwo(from), LoadInTwo(from + 16)};
  }
  static LNBP_INLINE void Stream(float* to, Floats v) {
    _mm512_stream_ps(to, v.a);
    _mm512_stream_ps(to + 16, v.b);
  }
};

struct DoubleColumns {
  static LNBP_INLINE Doubles Load(const double* from, Whole) {
    return {_mm512_loadu_pd(from), _mm512_loadu_pd(from + 8)};
  }
  static LNBP_INLINE Doubles Load(const double* from, First part) {
    const __mmask32 mask = Mask(part);
    return {_mm512_maskz_loadu_pd(static_cast<__mmask8>(mask), from),
            _mm512_maskz_loadu_pd(static_cast<__mmask8>(mask >> 8), from + 8)};
  }
  static LNBP_INLINE void Store(double* to, Doubles v, Whole) {
    _mm512_storeu_pd(to, v.a);
    _mm512_storeu_pd(to + 8, v.b);
  }
  static LNBP_INLINE void Store(double* to, Doubles v, First part) {
    const __mmask32 mask = Mask(part);
    _mm512_mask_storeu_pd(to, static_cast<__mmask8>(mask), v.a);
    _mm512_mask_storeu_pd(to + 8, static_cast<__mmask8>(mask >> 8), v.b);
  }
  static LNBP_INLINE Doubles Keep(Doubles v, First part) {
    const __mmask32 mask = Mask(part);
    return {_mm512_maskz_mov_pd(static_cast<__mmask8>(mask), v.a),
            _mm512_maskz_mov_pd(static_cast<__mmask8>(mask >> 8), v.b)};
  }

 private:
  static LNBP_INLINE __mmask32 Mask(First part) {
    return FirstBits(static_cast<std::ptrdiff_t>(part.count));
  }
};

template <>
struct Elements<double> : DoubleColumns {
  using Vector = Doubles;
  using Columns = DoubleColumns;

  using DoubleColumns::Load;
  static LNBP_INLINE Doubles Load(const double* from, Whole) {
    return {LoadInTwo(from), LoadInTwo(from + 8)};
  }
  static LNBP_INLINE void Stream(double* to, Doubles v) {
    _mm512_stream_pd(to, v.a);
    _mm512_stream_pd(to + 8, v.b);
  }
};

// The 32 half-precision numbers of a register.
LNBP_INLINE __m512i LoadHalves(const void* from, Whole) {
  return _mm512_loadu_si512(from);
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
  using Vector = Floats;
  using Columns = FloatColumns;

  static LNBP_INLINE Floats Load(const Float16* from, Whole) {
    const auto* halves = reinterpret_cast<const __m256i*>(from);
    return {_mm512_cvtph_ps(_mm256_loadu_si256(halves)),
            _mm512_cvtph_ps(_mm256_loadu_si256(halves + 1))};
  }
  static LNBP_INLINE Floats Load(const Float16* from, First part) {
    const __m512i halves = LoadHalves(from, part);
    return {_mm512_cvtph_ps(_mm512_castsi512_si256(halves)),
            _mm512_cvtph_ps(_mm512_extracti64x4_epi64(halves, 1))};
  }
  template <typename Part>
  static LNBP_INLINE void Store(Float16* to, Floats v, Part part) {
    StoreHalves(to, Round(v), part);
  }
  static LNBP_INLINE void Stream(Float16* to, Floats v) {
    StreamHalves(to, Round(v));
  }

 private:
  static LNBP_INLINE __m512i Round(Floats v) {
    constexpr int kToNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    return _mm512_inserti64x4(
        _mm512_castsi256_si512(_mm512_cvtps_ph(v.a, kToNearest)),
        _mm512_cvtps_ph(v.b, kToNearest), 1);
  }
};

// The even columns in the first register, the odd ones in the second: a shift
// and a mask then do for a conversion, where whole halves would be shuffled.
struct EvenOdd {
  template <typename Part>
  static LNBP_INLINE Floats Load(const float* from, Part part) {
    const Floats v = FloatColumns::Load(from, part);
    const __m512i even = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14,
                                          12, 10, 8, 6, 4, 2, 0);
    const __m512i odd = _mm512_set_epi32(31, 29, 27, 25, 23, 21, 19, 17, 15, 13,
                                         11, 9, 7, 5, 3, 1);
    return {_mm512_permutex2var_ps(v.a, even, v.b),
            _mm512_permutex2var_ps(v.a, odd, v.b)};
  }
  template <typename Part>
  static LNBP_INLINE void Store(float* to, Floats v, Part part) {
    const __m512i low = _mm512_set_epi32(23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18,
                                         2, 17, 1, 16, 0);
    const __m512i high = _mm512_set_epi32(31, 15, 30, 14, 29, 13, 28, 12, 27,
                                          11, 26, 10, 25, 9, 24, 8);
    FloatColumns::Store(to,
                        {_mm512_permutex2var_ps(v.a, low, v.b),
                         _mm512_permutex2var_ps(v.a, high, v.b)},
                        part);
  }
  static LNBP_INLINE Floats Keep(Floats v, First part) {
    const auto count = static_cast<std::ptrdiff_t>(part.count);
    return {
        _mm512_maskz_mov_ps(static_cast<__mmask16>(FirstBits((count + 1) / 2)),
                            v.a),
        _mm512_maskz_mov_ps(static_cast<__mmask16>(FirstBits(count / 2)), v.b)};
  }
};

// To nearest, ties to even; the even columns in the lower halves.
struct RoundingToBfloat16 {
  static LNBP_INLINE __m512i Round(Floats v) {
    __m512i even = RoundNumbers(v.a);
    __m512i odd = RoundNumbers(v.b);
    if (_mm512_cmp_ps_mask(v.a, v.b, _CMP_UNORD_Q) != 0) {
      even = KeepNan(v.a, even);
      odd = KeepNan(v.b, odd);
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
  using Vector = Floats;
  using Columns = EvenOdd;

  template <typename Part>
  static LNBP_INLINE Floats Load(const Bfloat16* from, Part part) {
    const __m512i halves = LoadHalves(from, part);
    return {_mm512_castsi512_ps(_mm512_slli_epi32(halves, 16)),
            _mm512_castsi512_ps(_mm512_and_si512(halves, UpperHalves()))};
  }
  template <typename Part>
  static LNBP_INLINE void Store(Bfloat16* to, Floats v, Part part) {
    StoreHalves(to, Rounding::Round(v), part);
  }
  static LNBP_INLINE void Stream(Bfloat16* to, Floats v) {
    StreamHalves(to, Rounding::Round(v));
  }

 private:
  static LNBP_INLINE __m512i UpperHalves() {
    return _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  }
};

template <>
struct Elements<Bfloat16> : Bfloat16Elements<RoundingToBfloat16> {};

}  // namespace lnbp::avx512

#endif  // LNBP_ONNX_SIMD_AVX512_H_
