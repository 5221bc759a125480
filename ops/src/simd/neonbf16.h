// SPDX-License-Identifier: Apache-2.0
//
// bfloat16 with the conversion of 64-bit ARM's extension BF16.

#ifndef LNBP_ONNX_NEONBF16_H_
#define LNBP_ONNX_NEONBF16_H_

#include <arm_neon.h>

#include "element_types.h"
#include "inline.h"
#include "neon.h"

namespace lnbp::neonbf16 {

struct Bfloat16Conversion : neon::Bfloat16Conversion {
  static LNBP_INLINE uint16x4_t Round(float32x4_t v) {
    return vreinterpret_u16_bf16(vcvt_bf16_f32(v));
  }
};

struct Isa : neon::Isa {
  // Of bfloat16 only.
  template <typename>
  using Elements = neon::HalfElements<Bfloat16, Bfloat16Conversion>;
};

}  // namespace lnbp::neonbf16

#endif  // LNBP_ONNX_NEONBF16_H_
