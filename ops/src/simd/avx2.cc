// SPDX-License-Identifier: Apache-2.0

#include "avx2.h"

#include "function_tables.h"
#include "simd_steps.h"

namespace lnbp {

constexpr FunctionTable kAvx2Functions = SimdFunctions<avx2::Isa>();

}  // namespace lnbp
