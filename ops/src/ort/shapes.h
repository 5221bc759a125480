// SPDX-License-Identifier: Apache-2.0
//
// What the shapes of the inputs mean, and which are refused.

#ifndef LNBP_ONNX_SHAPES_H_
#define LNBP_ONNX_SHAPES_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

#include "broadcast.h"
#include "spec.h"

namespace lnbp {

struct Shape {
  std::size_t rank = 0;
  std::array<std::int64_t, kMaxRank> dims;
};

// The shape of each input by its index; null for one that is absent, not used
// or not known yet.
using InputShapes = std::array<const Shape*, spec::kNumInputs>;

struct Geometry {
  std::size_t num_rows;
  std::size_t norm_size;
  Broadcast gamma;
  Broadcast beta;
};

// Throws InvalidNode unless begin_norm_axis suits a tensor of this rank.
void CheckAxis(const std::string& node, std::int64_t begin_norm_axis,
               std::size_t rank);

// Checks those shapes that are there; input_forward's has to be. Throws
// InvalidNode, whose message begins with `node`.
Geometry CheckShapes(const std::string& node, std::int64_t begin_norm_axis,
                     const InputShapes& shapes);

}  // namespace lnbp

#endif  // LNBP_ONNX_SHAPES_H_
