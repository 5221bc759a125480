// SPDX-License-Identifier: Apache-2.0

#ifndef LNBP_ONNX_AVX512BF16_ROW_FUNCTIONS_H_
#define LNBP_ONNX_AVX512BF16_ROW_FUNCTIONS_H_

#include "row_functions.h"

namespace lnbp {

// Those of bfloat16. To be called on a machine with avx512bf16 only.
const RowFunctions<float>* Avx512Bf16RowFunctions();

}  // namespace lnbp

#endif  // LNBP_ONNX_AVX512BF16_ROW_FUNCTIONS_H_
