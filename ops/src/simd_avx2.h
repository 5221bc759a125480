// SPDX-License-Identifier: Apache-2.0
//
// Vectors of two AVX2 registers; see simd_avx512.h.

#ifndef LNBP_ONNX_SIMD_AVX2_H_
#define LNBP_ONNX_SIMD_AVX2_H_

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "element_types.h"
#include "simd.h"

namespace lnbp::avx2 {

// All bits of the first `count` 32-bit lanes of a register, none where it is
// negative.
LNBP_INLINE __m256i FirstLanes(std::ptrdiff_t count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)),
                            _mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0));
}

struct Floats {
  __m256 a;
  __m256 b;

  static constexpr std::size_t kSize = 16;
  // 16 registers hold the sums of two rows.
  static constexpr std::size_t kRowsAtOnce = 2;
  static constexpr bool kSumsAhead = true;

  static LNBP_INLINE Floats Zeros() {
    return {_mm256_setzero_ps(), _mm256_setzero_ps()};
  }

  // A vector whose lanes are all one number: half the registers.
  struct Uniform {
    __m256 a;

    static LNBP_INLINE Uniform Of(float value) {
      return {_mm256_set1_ps(value)};
    }
  };
};

LNBP_INLINE Floats operator+(Floats x, Floats y) {
  return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)};
}
LNBP_INLINE Floats operator*(Floats x, Floats y) {
  return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)};
}
// x * y + z
LNBP_INLINE Floats MulAdd(Floats x, Floats y, Floats z) {
  return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
LNBP_INLINE Floats operator+(Floats x, Floats::Uniform y) {
  return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.a)};
}
LNBP_INLINE Floats operator*(Floats x, Floats::Uniform y) {
  return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.a)};
}
LNBP_INLINE Floats MulAdd(Floats x, Floats::Uniform y, Floats z) {
  return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.a, z.b)};
}
LNBP_INLINE Floats MulAdd(Floats x, Floats::Uniform y, Floats::Uniform z) {
  return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.a, z.a)};
}
// The sums over the lanes of four vectors.
LNBP_INLINE void SumLanes(const Floats* vectors, double* sums) {
  __m256 v[4];
  for (int i = 0; i < 4; ++i) v[i] = _mm256_add_ps(vectors[i].a, vectors[i].b);
  const __m256 v01 = _mm256_add_ps(_mm256_unpacklo_ps(v[0], v[1]),
                                   _mm256_unpackhi_ps(v[0], v[1]));
  const __m256 v23 = _mm256_add_ps(_mm256_unpacklo_ps(v[2], v[3]),
                                   _mm256_unpackhi_ps(v[2], v[3]));
  const __m256 half = _mm256_add_ps(_mm256_shuffle_ps(v01, v23, 0x44),
                                    _mm256_shuffle_ps(v01, v23, 0xee));
  const __m128 quarter =
      _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  _mm256_storeu_pd(sums, _mm256_cvtps_pd(quarter));
}

struct Doubles {
  __m256d a;
  __m256d b;

  static constexpr std::size_t kSize = 8;
  static constexpr std::size_t kRowsAtOnce = 2;
  static constexpr bool kSumsAhead = true;

  static LNBP_INLINE Doubles Zeros() {
    return {_mm256_setzero_pd(), _mm256_setzero_pd()};
  }

  // A vector whose lanes are all one number: half the registers.
  struct Uniform {
    __m256d a;

    static LNBP_INLINE Uniform Of(double value) {
      return {_mm256_set1_pd(value)};
    }
  };
};

LNBP_INLINE Doubles operator+(Doubles x, Doubles y) {
  return {_mm256_add_pd(x.a, y.a), _mm256_add_pd(x.b, y.b)};
}
LNBP_INLINE Doubles operator*(Doubles x, Doubles y) {
  return {_mm256_mul_pd(x.a, y.a), _mm256_mul_pd(x.b, y.b)};
}
LNBP_INLINE Doubles MulAdd(Doubles x, Doubles y, Doubles z) {
  return {_mm256_fmadd_pd(x.a, y.a, z.a), _mm256_fmadd_pd(x.b, y.b, z.b)};
}
LNBP_INLINE Doubles operator+(Doubles x, Doubles::Uniform y) {
  return {_mm256_add_pd(x.a, y.a), _mm256_add_pd(x.b, y.a)};
}
LNBP_INLINE Doubles operator*(Doubles x, Doubles::Uniform y) {
  return {_mm256_mul_pd(x.a, y.a), _mm256_mul_pd(x.b, y.a)};
}
LNBP_INLINE Doubles MulAdd(Doubles x, Doubles::Uniform y, Doubles z) {
  return {_mm256_fmadd_pd(x.a, y.a, z.a), _mm256_fmadd_pd(x.b, y.a, z.b)};
}
LNBP_INLINE Doubles MulAdd(Doubles x, Doubles::Uniform y, Doubles::Uniform z) {
  return {_mm256_fmadd_pd(x.a, y.a, z.a), _mm256_fmadd_pd(x.b, y.a, z.a)};
}
LNBP_INLINE void SumLanes(const Doubles* vectors, double* sums) {
  __m256d v[4];
  for (int i = 0; i < 4; ++i) v[i] = _mm256_add_pd(vectors[i].a, vectors[i].b);
  const __m256d v01 = _mm256_add_pd(_mm256_unpacklo_pd(v[0], v[1]),
                                    _mm256_unpackhi_pd(v[0], v[1]));
  const __m256d v23 = _mm256_add_pd(_mm256_unpacklo_pd(v[2], v[3]),
                                    _mm256_unpackhi_pd(v[2], v[3]));
  _mm256_storeu_pd(sums, _mm256_add_pd(_mm256_permute2f128_pd(v01, v23, 0x20),
                                       _mm256_permute2f128_pd(v01, v23, 0x31)));
}

// How the elements of a type are read, as vectors of the compute type, and
// written. `Columns` does the same for the arrays of the compute type that lie
// beside a row, with the same column in the same lane.
template <typename T>
struct Elements;

template <>
struct Elements<float> {
  using Vector = Floats;
  using Columns = Elements<float>;

  static LNBP_INLINE Floats Load(const float* from, Whole) {
    return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)};
  }
  static LNBP_INLINE Floats Load(const float* from, First part) {
    return {_mm256_maskload_ps(from, MaskA(part)),
            _mm256_maskload_ps(from + 8, MaskB(part))};
  }
  static LNBP_INLINE void Store(float* to, Floats v, Whole) {
    _mm256_storeu_ps(to, v.a);
    _mm256_storeu_ps(to + 8, v.b);
  }
  static LNBP_INLINE void Store(float* to, Floats v, First part) {
    _mm256_maskstore_ps(to, MaskA(part), v.a);
    _mm256_maskstore_ps(to + 8, MaskB(part), v.b);
  }
  static LNBP_INLINE void Stream(float* to, Floats v) {
    _mm256_stream_ps(to, v.a);
    _mm256_stream_ps(to + 8, v.b);
  }
  // v with zeros where there is no element.
  static LNBP_INLINE Floats Keep(Floats v, First part) {
    return {_mm256_and_ps(v.a, _mm256_castsi256_ps(MaskA(part))),
            _mm256_and_ps(v.b, _mm256_castsi256_ps(MaskB(part)))};
  }

 private:
  static LNBP_INLINE __m256i MaskA(First part) {
    return FirstLanes(static_cast<std::ptrdiff_t>(part.count));
  }
  static LNBP_INLINE __m256i MaskB(First part) {
    return FirstLanes(static_cast<std::ptrdiff_t>(part.count) - 8);
  }
};

template <>
struct Elements<double> {
  using Vector = Doubles;
  using Columns = Elements<double>;

  static LNBP_INLINE Doubles Load(const double* from, Whole) {
    return {_mm256_loadu_pd(from), _mm256_loadu_pd(from + 4)};
  }
  static LNBP_INLINE Doubles Load(const double* from, First part) {
    return {_mm256_maskload_pd(from, MaskA(part)),
            _mm256_maskload_pd(from + 4, MaskB(part))};
  }
  static LNBP_INLINE void Store(double* to, Doubles v, Whole) {
    _mm256_storeu_pd(to, v.a);
    _mm256_storeu_pd(to + 4, v.b);
  }
  static LNBP_INLINE void Store(double* to, Doubles v, First part) {
    _mm256_maskstore_pd(to, MaskA(part), v.a);
    _mm256_maskstore_pd(to + 4, MaskB(part), v.b);
  }
  static LNBP_INLINE void Stream(double* to, Doubles v) {
    _mm256_stream_pd(to, v.a);
    _mm256_stream_pd(to + 4, v.b);
  }
  static LNBP_INLINE Doubles Keep(Doubles v, First part) {
    return {_mm256_and_pd(v.a, _mm256_castsi256_pd(MaskA(part))),
            _mm256_and_pd(v.b, _mm256_castsi256_pd(MaskB(part)))};
  }

 private:
  static LNBP_INLINE __m256i MaskA(First part) {
    return FirstLanes(2 * static_cast<std::ptrdiff_t>(part.count));
  }
  static LNBP_INLINE __m256i MaskB(First part) {
    return FirstLanes(2 * static_cast<std::ptrdiff_t>(part.count) - 8);
  }
};

// The 16 half-precision numbers of a register. AVX2 has no masks for them.
LNBP_INLINE __m256i LoadHalves(const void* from, Whole) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(from));
}
LNBP_INLINE __m256i LoadHalves(const void* from, First part) {
  alignas(32) std::uint16_t halves[16] = {};
  for (std::size_t i = 0; i < part.count; ++i) {
    halves[i] = static_cast<const std::uint16_t*>(from)[i];
  }
  return LoadHalves(halves, Whole{});
}
LNBP_INLINE void StoreHalves(void* to, __m256i halves, Whole) {
  _mm256_storeu_si256(static_cast<__m256i*>(to), halves);
}
LNBP_INLINE void StoreHalves(void* to, __m256i halves, First part) {
  alignas(32) std::uint16_t copy[16];
  StoreHalves(copy, halves, Whole{});
  for (std::size_t i = 0; i < part.count; ++i) {
    static_cast<std::uint16_t*>(to)[i] = copy[i];
  }
}
LNBP_INLINE void StreamHalves(void* to, __m256i halves) {
  _mm256_stream_si256(static_cast<__m256i*>(to), halves);
}

template <>
struct Elements<Float16> {
  using Vector = Floats;
  using Columns = Elements<float>;

  static LNBP_INLINE Floats Load(const Float16* from, Whole) {
    const auto* halves = reinterpret_cast<const __m128i*>(from);
    return {_mm256_cvtph_ps(_mm_loadu_si128(halves)),
            _mm256_cvtph_ps(_mm_loadu_si128(halves + 1))};
  }
  static LNBP_INLINE Floats Load(const Float16* from, First part) {
    const __m256i halves = LoadHalves(from, part);
    return {_mm256_cvtph_ps(_mm256_castsi256_si128(halves)),
            _mm256_cvtph_ps(_mm256_extracti128_si256(halves, 1))};
  }
  template <typename Part>
  static LNBP_INLINE void Store(Float16* to, Floats v, Part part) {
    StoreHalves(to, Round(v), part);
  }
  static LNBP_INLINE void Stream(Float16* to, Floats v) {
    StreamHalves(to, Round(v));
  }

 private:
  static LNBP_INLINE __m256i Round(Floats v) {
    return _mm256_inserti128_si256(
        _mm256_castsi128_si256(_mm256_cvtps_ph(v.a, _MM_FROUND_TO_NEAREST_INT)),
        _mm256_cvtps_ph(v.b, _MM_FROUND_TO_NEAREST_INT), 1);
  }
};

template <>
struct Elements<Bfloat16> {
  using Vector = Floats;
  using Columns = Elements<float>;

  static LNBP_INLINE Floats Load(const Bfloat16* from, Whole) {
    const auto* halves = reinterpret_cast<const __m128i*>(from);
    return {Widen(_mm_loadu_si128(halves)), Widen(_mm_loadu_si128(halves + 1))};
  }
  static LNBP_INLINE Floats Load(const Bfloat16* from, First part) {
    const __m256i halves = LoadHalves(from, part);
    return {Widen(_mm256_castsi256_si128(halves)),
            Widen(_mm256_extracti128_si256(halves, 1))};
  }
  template <typename Part>
  static LNBP_INLINE void Store(Bfloat16* to, Floats v, Part part) {
    StoreHalves(to, Round(v), part);
  }
  static LNBP_INLINE void Stream(Bfloat16* to, Floats v) {
    StreamHalves(to, Round(v));
  }

 private:
  static LNBP_INLINE __m256 Widen(__m128i halves) {
    return _mm256_castsi256_ps(
        _mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
  }
  static LNBP_INLINE __m256i Round(Floats v) {
    __m256i a = RoundNumbers(v.a);
    __m256i b = RoundNumbers(v.b);
    if (_mm256_movemask_ps(_mm256_cmp_ps(v.a, v.b, _CMP_UNORD_Q)) != 0) {
      a = KeepNan(v.a, a);
      b = KeepNan(v.b, b);
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

}  // namespace lnbp::avx2

#endif  // LNBP_ONNX_SIMD_AVX2_H_
