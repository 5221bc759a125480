// SPDX-License-Identifier: Apache-2.0

#include "shapes.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "check.h"
#include "errors.h"

namespace lnbp::test {
namespace {

using Dims = std::vector<std::int64_t>;

Shape MakeShape(const Dims& dims) {
  Shape shape;
  shape.rank = dims.size();
  std::copy(dims.begin(), dims.end(), shape.dims.begin());
  return shape;
}

// input_forward and one other input.
Geometry Check(const Dims& input_forward, std::int64_t axis, std::size_t input,
               const Dims& dims) {
  const Shape first = MakeShape(input_forward);
  const Shape second = MakeShape(dims);
  InputShapes shapes{};
  shapes[spec::kInputForward] = &first;
  shapes[input] = &second;
  return CheckShapes("node", axis, shapes);
}

// The message, or "" where the shapes are taken.
std::string Message(const Dims& input_forward, std::int64_t axis,
                    std::size_t input, const Dims& dims) {
  try {
    Check(input_forward, axis, input, dims);
    return "";
  } catch (const InvalidNode& error) {
    return error.what();
  }
}

bool Takes(const Dims& input_forward, std::int64_t axis, std::size_t input,
           const Dims& dims) {
  return Message(input_forward, axis, input, dims).empty();
}

void TestAxis() {
  const Dims dims = {2, 3, 5};
  const std::size_t same = spec::kOutputDelta;
  const std::size_t rows[] = {1, 2, 6, 1, 2, 6};
  for (std::int64_t axis = -3; axis < 3; ++axis) {
    const Geometry geometry = Check(dims, axis, same, dims);
    CHECK(geometry.num_rows == rows[axis + 3]);
    CHECK(geometry.num_rows * geometry.norm_size == 30);
  }
  CHECK(Message(dims, 3, same, dims) ==
        "node: attribute 'begin_norm_axis' is 3; with input_forward of rank 3 "
        "it must be in [-3, 2] (the last axis is -1).");
  CHECK(!Takes(dims, -4, same, dims));
  CHECK(Message({}, 0, same, {}) ==
        "node: input 'input_forward' is a scalar; it must have at least one "
        "axis (reshape it to [1]).");
}

void TestOutputDelta() {
  CHECK(Takes({2, 3}, -1, spec::kOutputDelta, {2, 3}));
  CHECK(Message({2, 3}, -1, spec::kOutputDelta, {3, 2}) ==
        "node: input 'output_delta' has shape [3, 2] and input_forward [2, 3]; "
        "the two must be equal (connect the gradient with respect to the "
        "normalised output).");
  CHECK(!Takes({2, 3}, -1, spec::kOutputDelta, {2, 3, 1}));
  CHECK(!Takes({2, 3}, -1, spec::kOutputDelta, {6}));
  CHECK(!Takes({2, 3}, -1, spec::kOutputDelta, {}));
}

void TestStatistics() {
  for (const std::size_t input : {spec::kMean, spec::kVariance}) {
    CHECK(Takes({2, 3, 5}, 2, input, {2, 3}));
    CHECK(Takes({2, 3, 5}, 2, input, {2, 3, 1}));
    CHECK(Takes({2, 3, 5}, 2, input, {6}));
    CHECK(Takes({2, 3, 5}, 1, input, {2, 1, 1}));
    CHECK(Takes({2, 3}, 0, input, {}));
    CHECK(Takes({2, 3}, 0, input, {1}));
    CHECK(Takes({2, 3}, 0, input, {1, 1}));
    CHECK(Takes({0, 3}, 1, input, {0}));
    CHECK(!Takes({2, 3, 5}, 1, input, {2, 1}));
    CHECK(!Takes({2, 3, 5}, 2, input, {3, 2}));
    CHECK(!Takes({2, 3, 5}, 2, input, {1, 6}));
    CHECK(!Takes({2, 3}, 1, input, {}));
    CHECK(!Takes({2, 3}, 1, input, {1}));
  }
  CHECK(Message({2, 3, 5}, 1, spec::kVariance, {3}) ==
        "node: input 'variance' has shape [3]; it must be [2], [2, 1, 1], or "
        "1-D with one element for each row (reshape it, or move "
        "begin_norm_axis).");
}

void TestParameters() {
  for (const std::size_t input : {spec::kGamma, spec::kBeta}) {
    CHECK(Takes({2, 3, 5}, 1, input, {3, 5}));
    CHECK(Takes({2, 3, 5}, 1, input, {1, 5}));
    CHECK(Takes({2, 3, 5}, 1, input, {3, 1}));
    CHECK(Takes({2, 3, 5}, 1, input, {5}));
    CHECK(Takes({2, 3, 5}, 1, input, {15}));
    CHECK(Takes({2, 3, 5}, 1, input, {}));
    CHECK(!Takes({2, 3, 5}, 1, input, {3}));
    CHECK(!Takes({2, 3, 5}, 1, input, {5, 3}));
    CHECK(!Takes({2, 3, 5}, 1, input, {1, 3, 5}));
    CHECK(!Takes({2, 3, 5}, 1, input, {1, 15}));
    CHECK(!Takes({2, 3, 5}, 1, input, {0}));
  }
  CHECK(Message({2, 3, 5}, 1, spec::kGamma, {4}) ==
        "node: input 'gamma' has shape [4]; it must broadcast to the "
        "normalised axes [3, 5], or be 1-D with as many elements as they have "
        "(reshape it, or move begin_norm_axis).");

  Geometry geometry = Check({2, 3, 5}, 1, spec::kGamma, {3, 1});
  CHECK(geometry.gamma.size() == 3 && geometry.beta.size() == 3);
  geometry.gamma.ForEachColumn(15, [](std::size_t column, std::size_t element) {
    CHECK(element == column / 5);
  });
  CHECK(Check({2, 3, 5}, 1, spec::kBeta, {5}).beta.size() == 5);
  CHECK(Check({2, 3, 5}, 1, spec::kGamma, {15}).gamma.is_identity());
  // Both readings of a 1-D gamma: one axis is broadcast, or none is.
  CHECK(Check({2, 2, 1}, 1, spec::kGamma, {2}).gamma.is_identity());
  CHECK(!Check({2, 2, 1}, 1, spec::kGamma, {1}).gamma.is_identity());
  CHECK(Check({2, 0, 4}, 1, spec::kGamma, {4}).gamma.size() == 4);
}

}  // namespace
}  // namespace lnbp::test

int main() {
  lnbp::test::TestAxis();
  lnbp::test::TestOutputDelta();
  lnbp::test::TestStatistics();
  lnbp::test::TestParameters();
  return lnbp::test::Result();
}
