// SPDX-License-Identifier: Apache-2.0
//
// The one place that chooses the variant of the kernel.

#ifndef LNBP_ONNX_SELECT_ROW_FUNCTIONS_H_
#define LNBP_ONNX_SELECT_ROW_FUNCTIONS_H_

#include "element_types.h"
#include "isa.h"
#include "row_functions.h"

namespace lnbp {

// The functions for tensors of `type` with instructions up to `isa`, which the
// machine must have. `C` is the type that `type` is computed in.
template <typename C>
const RowFunctions<C>& SelectRowFunctions(ElementType type, Isa isa);

}  // namespace lnbp

#endif  // LNBP_ONNX_SELECT_ROW_FUNCTIONS_H_
