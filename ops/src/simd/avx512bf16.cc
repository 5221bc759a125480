// SPDX-License-Identifier: Apache-2.0

#include "avx512bf16.h"

#include "function_tables.h"
#include "simd_steps.h"

namespace lnbp {

constexpr FunctionTable kAvx512Bf16Functions = [] {
  FunctionTable table;
  table.Add(ElementType::kBfloat16, &kSimdFunctions<Bfloat16, avx512bf16::Isa>);
  return table;
}();

}  // namespace lnbp
