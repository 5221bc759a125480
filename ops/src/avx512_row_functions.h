// SPDX-License-Identifier: Apache-2.0

#ifndef LNBP_ONNX_AVX512_ROW_FUNCTIONS_H_
#define LNBP_ONNX_AVX512_ROW_FUNCTIONS_H_

#include "element_types.h"
#include "row_functions.h"

namespace lnbp {

// Null for a type that has none. To be called on a machine with avx512 only.
template <typename C>
const RowFunctions<C>* Avx512RowFunctions(ElementType type);

}  // namespace lnbp

#endif  // LNBP_ONNX_AVX512_ROW_FUNCTIONS_H_
