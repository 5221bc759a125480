// SPDX-License-Identifier: Apache-2.0
//
// The one place that chooses the variant of the kernel.

#ifndef LNBP_ONNX_SELECT_ROW_FUNCTIONS_H_
#define LNBP_ONNX_SELECT_ROW_FUNCTIONS_H_

#include "element_types.h"
#include "row_functions.h"

namespace lnbp {

// The functions for tensors of `type`. `C` is the type that it is computed in.
template <typename C>
const RowFunctions<C>& SelectRowFunctions(ElementType type);

}  // namespace lnbp

#endif  // LNBP_ONNX_SELECT_ROW_FUNCTIONS_H_
