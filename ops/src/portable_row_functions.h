// SPDX-License-Identifier: Apache-2.0

#ifndef LNBP_ONNX_PORTABLE_ROW_FUNCTIONS_H_
#define LNBP_ONNX_PORTABLE_ROW_FUNCTIONS_H_

#include "element_types.h"
#include "row_functions.h"

namespace lnbp {

// Standard C++ only, in loops that a compiler can vectorise.
template <typename C>
const RowFunctions<C>& PortableRowFunctions(ElementType type);

}  // namespace lnbp

#endif  // LNBP_ONNX_PORTABLE_ROW_FUNCTIONS_H_
