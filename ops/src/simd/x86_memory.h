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
  static LNBP_INLINE void StreamLine(void* to, const void* from) {
    auto* const out = static_cast<__m256i*>(to);
    const auto* const in = static_cast<const __m256i*>(from);
    const __m256i first = _mm256_loadu_si256(in);
    const __m256i second = _mm256_loadu_si256(in + 1);
    _mm256_stream_si256(out, first);
    _mm256_stream_si256(out + 1, second);
  }
  static LNBP_INLINE void FinishStores() { _mm_sfence(); }
};

}  // namespace lnbp

#endif  // LNBP_ONNX_X86_MEMORY_H_
