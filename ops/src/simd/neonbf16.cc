// SPDX-License-Identifier: Apache-2.0

#include "neonbf16.h"

#include "function_tables.h"
#include "simd_steps.h"

namespace lnbp {

constexpr FunctionTable kNeonBf16Functions = [] {
  FunctionTable table;
  table.Add(ElementType::kBfloat16, &kSimdFunctions<Bfloat16, neonbf16::Isa>);
  return table;
}();

}  // namespace lnbp
