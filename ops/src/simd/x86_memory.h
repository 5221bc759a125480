// SPDX-License-Identifier: Apache-2.0

#ifndef LNBP_ONNX_X86_MEMORY_H_
#define LNBP_ONNX_X86_MEMORY_H_

#include <immintrin.h>

#include "inline.h"

namespace lnbp {

// What the instruction sets of x86 have in common.
struct X86Memory {
  static LNBP_INLINE void Prefetch(const void* address) {
    _mm_prefetch(static_cast<const char*>(address), _MM_HINT_T0);
  }
  static LNBP_INLINE void FinishStores() { _mm_sfence(); }
};

}  // namespace lnbp

#endif  // LNBP_ONNX_X86_MEMORY_H_
