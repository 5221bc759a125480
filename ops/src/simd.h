// SPDX-License-Identifier: Apache-2.0
//
// What simd_avx2.h and simd_avx512.h have in common. Everything that is
// compiled for an instruction set beyond the baseline is named after that set:
// a function of a common name could be the one that the linker keeps for all
// callers, on machines without the instructions too.

#ifndef LNBP_ONNX_SIMD_H_
#define LNBP_ONNX_SIMD_H_

#include <cstddef>

// Without it gcc calls the bodies of loops, with their registers in memory.
#ifdef _MSC_VER
#define LNBP_INLINE __forceinline
#else
#define LNBP_INLINE inline __attribute__((always_inline))
#endif

namespace lnbp {

// How much of a vector there is in memory.
struct Whole {};
struct First {
  std::size_t count;
};

}  // namespace lnbp

#endif  // LNBP_ONNX_SIMD_H_
