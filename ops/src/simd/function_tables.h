// SPDX-License-Identifier: Apache-2.0
//
// The functions of each variant, defined in the file of its name; for
// variants.cc.

#ifndef LNBP_ONNX_FUNCTION_TABLES_H_
#define LNBP_ONNX_FUNCTION_TABLES_H_

#include "row_functions.h"

namespace lnbp {

extern const FunctionTable kPortableFunctions;
extern const FunctionTable kAvx2Functions;
extern const FunctionTable kAvx512Functions;
extern const FunctionTable kAvx512Bf16Functions;
extern const FunctionTable kNeonFunctions;
extern const FunctionTable kNeonBf16Functions;

}  // namespace lnbp

#endif  // LNBP_ONNX_FUNCTION_TABLES_H_
