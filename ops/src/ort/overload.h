// SPDX-License-Identifier: Apache-2.0

#ifndef LNBP_ONNX_OVERLOAD_H_
#define LNBP_ONNX_OVERLOAD_H_

#include "element_types.h"
#include "ort_abi.h"

namespace lnbp {

// The operator for one combination of its types T, P and U.
struct Overload : ort::CustomOp {
  ElementType type;
  ElementType parameter_type;
  ElementType statistics_type;
};

// A table for a runtime of `version`, one of ort::kApiVersion and
// ort::kMayInplaceVersion.
Overload MakeOverload(std::uint32_t version, ElementType type,
                      ElementType parameter_type, ElementType statistics_type);

}  // namespace lnbp

#endif  // LNBP_ONNX_OVERLOAD_H_
