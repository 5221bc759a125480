// SPDX-License-Identifier: Apache-2.0

#include "avx512bf16_row_functions.h"

#include "row_steps.h"
#include "simd_avx512bf16.h"
#include "simd_steps.h"

namespace lnbp {
namespace {

constexpr RowFunctions<float> kFunctions =
    RowFunctionsOf<Bfloat16, float,
                   SimdSteps<Bfloat16, avx512bf16::Elements>>::Table();

}  // namespace

const RowFunctions<float>* Avx512Bf16RowFunctions() { return &kFunctions; }

}  // namespace lnbp
