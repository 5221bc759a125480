// SPDX-License-Identifier: Apache-2.0
//
// What the machine has.

#ifndef LNBP_ONNX_PROCESSOR_H_
#define LNBP_ONNX_PROCESSOR_H_

#include <cstddef>

namespace lnbp {

#ifdef LNBP_HAS_X86_SIMD
bool HasAvx2();        // and FMA and F16C
bool HasAvx512();      // F, BW, DQ and VL, and HasAvx2
bool HasAvx512Bf16();  // and HasAvx512
#endif
#ifdef LNBP_HAS_NEON_BF16
bool HasNeonBf16();
#endif

// The size of the last-level cache that a core can fill; 0 where unknown.
std::size_t LastLevelCacheBytes();

}  // namespace lnbp

#endif  // LNBP_ONNX_PROCESSOR_H_
