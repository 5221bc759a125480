// SPDX-License-Identifier: Apache-2.0

#include "avx512.h"

#include "function_tables.h"
#include "simd_steps.h"

namespace lnbp {

constexpr FunctionTable kAvx512Functions = SimdFunctions<avx512::Isa>();

}  // namespace lnbp
