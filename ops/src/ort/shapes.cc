// SPDX-License-Identifier: Apache-2.0

#include "shapes.h"

#include <algorithm>

#include "errors.h"

namespace lnbp {
namespace {

std::string ToString(const std::int64_t* begin, const std::int64_t* end) {
  std::string text = "[";
  for (const std::int64_t* dim = begin; dim != end; ++dim) {
    if (dim != begin) text += ", ";
    text += std::to_string(*dim);
  }
  return text + "]";
}

std::string ToString(const Shape& shape) {
  return ToString(shape.dims.data(), shape.dims.data() + shape.rank);
}

std::string Found(const std::string& node, std::size_t input,
                  const Shape& shape) {
  return node + ": input '" + spec::kInputNames[input] + "' has shape " +
         ToString(shape);
}

// The leading or the normalised part of input_forward's shape.
struct Axes {
  const std::int64_t* begin;
  std::size_t rank;

  const std::int64_t* end() const { return begin + rank; }
  // Without a check for overflow: an overflow takes another axis of length 0,
  // and then no element is touched.
  std::uint64_t size() const {
    std::uint64_t product = 1;
    for (std::size_t i = 0; i < rank; ++i) {
      product *= static_cast<std::uint64_t>(begin[i]);
    }
    return product;
  }
};

bool IsFlat(const Shape& shape, std::uint64_t size) {
  return shape.rank == 1 && static_cast<std::uint64_t>(shape.dims[0]) == size;
}

bool Broadcasts(const Shape& shape, const Axes& norm) {
  if (shape.rank > norm.rank) return false;
  const std::int64_t* target = norm.end() - shape.rank;
  for (std::size_t i = 0; i < shape.rank; ++i) {
    if (shape.dims[i] != 1 && shape.dims[i] != target[i]) return false;
  }
  return true;
}

Broadcast ParameterBroadcast(const std::string& node, std::size_t input,
                             const Shape& shape, const Axes& norm) {
  if (Broadcasts(shape, norm)) {
    Broadcast broadcast(1);
    const std::size_t missing = norm.rank - shape.rank;
    for (std::size_t i = 0; i < norm.rank; ++i) {
      const bool repeated =
          i < missing || shape.dims[i - missing] != norm.begin[i];
      broadcast.AddAxis(static_cast<std::size_t>(norm.begin[i]), repeated);
    }
    return broadcast;
  }
  if (IsFlat(shape, norm.size())) {
    return Broadcast(static_cast<std::size_t>(norm.size()));
  }
  throw InvalidNode(Found(node, input, shape) +
                    "; it must broadcast to the normalised axes " +
                    ToString(norm.begin, norm.end()) +
                    ", or be 1-D with as many elements as they have (reshape "
                    "it, or move begin_norm_axis).");
}

void CheckStatistic(const std::string& node, std::size_t input,
                    const Shape& shape, const Axes& lead, const Axes& norm) {
  const std::int64_t* dims = shape.dims.data();
  const bool starts_with_lead =
      shape.rank >= lead.rank && std::equal(lead.begin, lead.end(), dims);
  const bool is_lead = starts_with_lead && shape.rank == lead.rank;
  const bool is_kept = starts_with_lead &&
                       shape.rank == lead.rank + norm.rank &&
                       std::all_of(dims + lead.rank, dims + shape.rank,
                                   [](std::int64_t dim) { return dim == 1; });
  if (is_lead || is_kept || IsFlat(shape, lead.size())) return;
  Shape kept;
  kept.rank = lead.rank + norm.rank;
  std::fill_n(std::copy_n(lead.begin, lead.rank, kept.dims.begin()), norm.rank,
              1);
  throw InvalidNode(Found(node, input, shape) + "; it must be " +
                    ToString(lead.begin, lead.end()) + ", " + ToString(kept) +
                    ", or 1-D with one element for each row (reshape it, or "
                    "move begin_norm_axis).");
}

}  // namespace

void CheckAxis(const std::string& node, std::int64_t begin_norm_axis,
               std::size_t rank) {
  const auto signed_rank = static_cast<std::int64_t>(rank);
  if (rank == 0) {
    throw InvalidNode(node +
                      ": input 'input_forward' is a scalar; it must have at "
                      "least one axis (reshape it to [1]).");
  }
  if (begin_norm_axis < -signed_rank || begin_norm_axis >= signed_rank) {
    throw InvalidNode(node + ": attribute 'begin_norm_axis' is " +
                      std::to_string(begin_norm_axis) +
                      "; with input_forward of rank " + std::to_string(rank) +
                      " it must be in [" + std::to_string(-signed_rank) + ", " +
                      std::to_string(signed_rank - 1) +
                      "] (the last axis is -1).");
  }
}

Geometry CheckShapes(const std::string& node, std::int64_t begin_norm_axis,
                     const InputShapes& shapes) {
  const Shape& input_forward = *shapes[spec::kInputForward];
  CheckAxis(node, begin_norm_axis, input_forward.rank);
  const auto rank = static_cast<std::int64_t>(input_forward.rank);
  const auto axis = static_cast<std::size_t>(
      begin_norm_axis < 0 ? begin_norm_axis + rank : begin_norm_axis);
  const Axes lead = {input_forward.dims.data(), axis};
  const Axes norm = {lead.end(), input_forward.rank - axis};

  if (const Shape* shape = shapes[spec::kOutputDelta]) {
    if (!std::equal(lead.begin, norm.end(), shape->dims.data(),
                    shape->dims.data() + shape->rank)) {
      throw InvalidNode(Found(node, spec::kOutputDelta, *shape) +
                        " and input_forward " + ToString(input_forward) +
                        "; the two must be equal (connect the gradient with "
                        "respect to the normalised output).");
    }
  }
  for (const std::size_t input : {spec::kMean, spec::kVariance}) {
    if (const Shape* shape = shapes[input]) {
      CheckStatistic(node, input, *shape, lead, norm);
    }
  }
  Geometry geometry{static_cast<std::size_t>(lead.size()),
                    static_cast<std::size_t>(norm.size()), Broadcast(),
                    Broadcast()};
  if (const Shape* shape = shapes[spec::kGamma]) {
    geometry.gamma = ParameterBroadcast(node, spec::kGamma, *shape, norm);
    geometry.beta = geometry.gamma;
  }
  if (const Shape* shape = shapes[spec::kBeta]) {
    geometry.beta = ParameterBroadcast(node, spec::kBeta, *shape, norm);
  }
  return geometry;
}

}  // namespace lnbp
