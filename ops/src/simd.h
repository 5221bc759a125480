// SPDX-License-Identifier: Apache-2.0
//
// What simd_avx2.h and simd_avx512.h have in common.

#ifndef LNBP_ONNX_SIMD_H_
#define LNBP_ONNX_SIMD_H_

#include <cstddef>

#include "inline.h"

namespace lnbp {

// How much of a vector there is in memory.
struct Whole {};
struct First {
  std::size_t count;
};

}  // namespace lnbp

#endif  // LNBP_ONNX_SIMD_H_
