// SPDX-License-Identifier: Apache-2.0
//
// Which instruction sets there are variants of the kernel for, and what the
// machine has.

#ifndef LNBP_ONNX_ISA_H_
#define LNBP_ONNX_ISA_H_

#include <cstddef>

namespace lnbp {

// Each one includes those before it.
enum class Isa { kPortable, kAvx2, kAvx512, kAvx512Bf16 };

// The last one that this build and this machine have.
Isa BestIsa();

// What `name` (portable, avx2, avx512 or avx512bf16) allows: that one, or the
// best one where the machine has less. A null or unknown name allows
// everything.
Isa IsaUpTo(const char* name);

// What the environment variable LNBP_ISA allows; read once.
Isa DefaultIsa();

// The size of the last-level cache that a core can fill; 0 where unknown.
std::size_t LastLevelCacheBytes();

}  // namespace lnbp

#endif  // LNBP_ONNX_ISA_H_
