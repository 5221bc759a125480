// SPDX-License-Identifier: Apache-2.0
//
// A node as the graph states it, read once when a session is created.

#ifndef LNBP_ONNX_NODE_H_
#define LNBP_ONNX_NODE_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

#include "ort_abi.h"
#include "spec.h"

namespace lnbp {

struct Node {
  std::string label;  // what messages call it
  std::int64_t begin_norm_axis;
  bool use_affine;
  float epsilon;
  bool use_stats;
  // Inputs that are there and that the attributes do not make unused.
  std::array<bool, spec::kNumInputs> is_used;
  std::array<bool, spec::kNumOutputs> is_wanted;
};

// Throws InvalidNode where the graph alone shows that the node is refused.
Node ReadNode(const ort::Api& api, const OrtKernelInfo* info);

}  // namespace lnbp

#endif  // LNBP_ONNX_NODE_H_
