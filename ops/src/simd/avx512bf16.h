// SPDX-License-Identifier: Apache-2.0
//
// bfloat16 with the conversion that AVX512_BF16 has.

#ifndef LNBP_ONNX_AVX512BF16_H_
#define LNBP_ONNX_AVX512BF16_H_

#include <immintrin.h>

#include <cstring>

#include "avx512.h"
#include "pair.h"

namespace lnbp::avx512bf16 {

struct RoundingToBfloat16 {
  static LNBP_INLINE __m512i Round(Pair<avx512::Floats> v) {
    // The instruction takes subnormal numbers for 0.
    constexpr int kSubnormal = 0x20;
    if ((_mm512_fpclass_ps_mask(v.a.v, kSubnormal) |
         _mm512_fpclass_ps_mask(v.b.v, kSubnormal)) != 0) {
      return avx512::RoundingToBfloat16::Round(v);
    }
    const __m512i low_and_high = _mm512_set_epi16(
        31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22,
        6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return _mm512_permutexvar_epi16(low_and_high, Convert(v));
  }

 private:
  // The even columns, then the odd ones.
  static LNBP_INLINE __m512i Convert(Pair<avx512::Floats> v) {
    const __m512bh halves = _mm512_cvtne2ps_pbh(v.b.v, v.a.v);
    __m512i bits;
    static_assert(sizeof(bits) == sizeof(halves));
    std::memcpy(&bits, &halves, sizeof(bits));
    return bits;
  }
};

struct Isa : avx512::Isa {
  // Of bfloat16 only.
  template <typename>
  using Elements = avx512::Bfloat16Elements<RoundingToBfloat16>;
};

}  // namespace lnbp::avx512bf16

#endif  // LNBP_ONNX_AVX512BF16_H_
