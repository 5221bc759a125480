// SPDX-License-Identifier: Apache-2.0

#include "neon.h"

#include "function_tables.h"
#include "simd_steps.h"

namespace lnbp {

constexpr FunctionTable kNeonFunctions = SimdFunctions<neon::Isa>();

}  // namespace lnbp
