// SPDX-License-Identifier: Apache-2.0

#ifndef LNBP_ONNX_ERRORS_H_
#define LNBP_ONNX_ERRORS_H_

#include <stdexcept>

namespace lnbp {

// The node or its inputs are not what the operator allows. The message names
// the node, the input or attribute, what was found, what is allowed and, in
// brackets, how to get there. lnbp_onnx/node.py refuses in the same words.
class InvalidNode : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

}  // namespace lnbp

#endif  // LNBP_ONNX_ERRORS_H_
