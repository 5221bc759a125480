// SPDX-License-Identifier: Apache-2.0
//
// How the buffers of a call may lie in memory.

#ifndef LNBP_ONNX_BUFFERS_H_
#define LNBP_ONNX_BUFFERS_H_

#include <string>

#include "kernel.h"

namespace lnbp {

// Each output has memory of its own, or begins where an input does that is read
// as it is written: input_delta where input_forward or output_delta does,
// gamma_delta and beta_delta where gamma does. Throws InvalidNode, whose
// message begins with `node`, where one overlaps anything in another way.
void CheckBuffers(const std::string& node, const Arguments& arguments);

}  // namespace lnbp

#endif  // LNBP_ONNX_BUFFERS_H_
