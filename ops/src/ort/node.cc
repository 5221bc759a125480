// SPDX-License-Identifier: Apache-2.0

#include "node.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>

#include "ort_status.h"
#include "shapes.h"

namespace lnbp {
namespace {

class Reader {
 public:
  Reader(const ort::Api& api, const OrtKernelInfo* info)
      : api_(api), info_(info) {}

  // "" where the input or output is omitted.
  std::string InputName(std::size_t index) const {
    return NameAt(index, api_.KernelInfo_GetInputCount,
                  api_.KernelInfo_GetInputName);
  }
  std::string OutputName(std::size_t index) const {
    return NameAt(index, api_.KernelInfo_GetOutputCount,
                  api_.KernelInfo_GetOutputName);
  }

  std::string Label() const {
    const std::string name = ReadString([this](char* out, std::size_t* size) {
      return api_.KernelInfo_GetNodeName(info_, out, size);
    });
    const std::string node = std::string(spec::kOpType) + " node ";
    if (!name.empty()) return node + "'" + name + "'";
    for (std::size_t i = 0; i < spec::kNumOutputs; ++i) {
      const std::string output = OutputName(i);
      if (!output.empty()) return node + "with output '" + output + "'";
    }
    return spec::kOpType;
  }

  std::int64_t Integer(const std::string& label, const char* name,
                       std::int64_t default_value) const {
    std::int64_t value = 0;
    if (Succeeded(api_,
                  api_.KernelInfoGetAttribute_int64(info_, name, &value))) {
      return value;
    }
    CheckAbsent(label, name, "INT (write it as an integer)");
    return default_value;
  }

  bool Boolean(const std::string& label, const char* name,
               std::int64_t default_value) const {
    const std::int64_t value = Integer(label, name, default_value);
    if (value != 0 && value != 1) {
      throw InvalidNode(label + ": attribute '" + name + "' is " +
                        std::to_string(value) +
                        "; it must be 0 or 1 (set one of them).");
    }
    return value == 1;
  }

  float Float(const std::string& label, const char* name,
              float default_value) const {
    float value = 0;
    if (Succeeded(api_,
                  api_.KernelInfoGetAttribute_float(info_, name, &value))) {
      return value;
    }
    CheckAbsent(label, name, "FLOAT (write it as a float)");
    return default_value;
  }

  // What the graph states of an input's shape: an axis that is not known is
  // negative, and rank 0 can also mean that nothing is known.
  Shape InputShape(std::size_t index) const {
    Shape shape;
    OrtTypeInfo* type_info = nullptr;
    if (!Succeeded(
            api_, api_.KernelInfo_GetInputTypeInfo(info_, index, &type_info))) {
      return shape;
    }
    const OrtTensorTypeAndShapeInfo* tensor_info = nullptr;
    std::size_t rank = 0;
    if (Succeeded(api_,
                  api_.CastTypeInfoToTensorInfo(type_info, &tensor_info)) &&
        tensor_info != nullptr &&
        Succeeded(api_, api_.GetDimensionsCount(tensor_info, &rank)) &&
        rank <= kMaxRank &&
        Succeeded(api_,
                  api_.GetDimensions(tensor_info, shape.dims.data(), rank))) {
      shape.rank = rank;
    }
    api_.ReleaseTypeInfo(type_info);
    return shape;
  }

 private:
  template <typename Get>
  std::string ReadString(Get get) const {
    std::size_t size = 0;
    ThrowOnError(get(nullptr, &size));
    std::string text(size, '\0');
    ThrowOnError(get(text.data(), &size));
    text.resize(size == 0 ? 0 : size - 1);  // without the final zero
    return text;
  }

  template <typename GetCount, typename GetName>
  std::string NameAt(std::size_t index, GetCount get_count,
                     GetName get_name) const {
    std::size_t count = 0;
    ThrowOnError(get_count(info_, &count));
    if (index >= count) return "";
    return ReadString([this, index, get_name](char* out, std::size_t* size) {
      return get_name(info_, index, out, size);
    });
  }

  // The runtime answers alike for an attribute that is absent and for one of
  // another type. The getters of other types tell them apart; those of lists
  // answer for an attribute of any type, and find no elements in most.
  void CheckAbsent(const std::string& label, const char* name,
                   const char* wanted) const {
    std::int64_t integer = 0;
    float real = 0;
    std::size_t size = 0;
    const char* found = nullptr;
    if (Succeeded(api_,
                  api_.KernelInfoGetAttribute_int64(info_, name, &integer))) {
      found = "type INT";
    } else if (Succeeded(api_, api_.KernelInfoGetAttribute_float(info_, name,
                                                                 &real))) {
      found = "type FLOAT";
    } else if (Succeeded(api_, api_.KernelInfoGetAttribute_string(
                                   info_, name, nullptr, &size))) {
      found = "type STRING";
    } else {
      const bool has_integers = Succeeded(
          api_,
          api_.KernelInfoGetAttributeArray_int64(info_, name, nullptr, &size));
      if (has_integers && size > 0) {
        found = "type INTS";
      } else if (Succeeded(api_, api_.KernelInfoGetAttributeArray_float(
                                     info_, name, nullptr, &size)) &&
                 size > 0) {
        found = "type FLOATS";
      } else if (has_integers) {
        found = "another type";
      }
    }
    if (found != nullptr) {
      throw InvalidNode(label + ": attribute '" + name + "' has " + found +
                        "; it must be " + wanted + ".");
    }
  }

  const ort::Api& api_;
  const OrtKernelInfo* info_;
};

void CheckEpsilon(const Node& node) {
  const bool allowed =
      std::isfinite(node.epsilon) &&
      (node.epsilon > 0 || (node.epsilon == 0 && node.use_stats));
  if (allowed) return;
  // The sign of a NaN is nobody's concern.
  const float epsilon = std::isnan(node.epsilon)
                            ? std::numeric_limits<float>::quiet_NaN()
                            : node.epsilon;
  char value[32];
  std::snprintf(value, sizeof(value), "%g", static_cast<double>(epsilon));
  throw InvalidNode(
      node.label + ": attribute '" + spec::kEpsilon + "' is " + value +
      "; it must be finite and " +
      (node.use_stats ? "at least 0" : "greater than 0, since use_stats is 0") +
      " (the usual value is 1e-5).");
}

void CheckInputs(const Node& node) {
  const auto require = [&node](std::size_t input, const std::string& condition,
                               const std::string& alternative) {
    if (node.is_used[input]) return;
    throw InvalidNode(node.label + ": input '" + spec::kInputNames[input] +
                      "' is missing; it is required" + condition +
                      " (connect it" + alternative + ").");
  };
  require(spec::kInputForward, "", "");
  require(spec::kOutputDelta, "", "");
  if (node.use_affine) {
    require(spec::kGamma, " with use_affine=1", ", or set use_affine=0");
  }
  if (node.use_stats) {
    for (const std::size_t input : {spec::kMean, spec::kVariance}) {
      require(input, " with use_stats=1",
              ", or set use_stats=0 to have it computed");
    }
  }
}

void CheckOutputs(const Node& node) {
  if (!node.is_wanted[spec::kInputDelta]) {
    throw InvalidNode(
        node.label + ": output '" + spec::kOutputNames[spec::kInputDelta] +
        "' is omitted; it is required (give it a name, used or not).");
  }
  for (const std::size_t output : {spec::kGammaDelta, spec::kBetaDelta}) {
    if (node.is_wanted[output] && !node.use_affine) {
      throw InvalidNode(node.label + ": output '" + spec::kOutputNames[output] +
                        "' is requested with use_affine=0; it exists only with "
                        "use_affine=1 (leave it out, or set use_affine=1 and "
                        "connect gamma).");
    }
  }
}

void CheckKnownShapes(const Reader& reader, const Node& node) {
  std::array<Shape, spec::kNumInputs> shapes;
  InputShapes known{};
  for (std::size_t i = 0; i < spec::kNumInputs; ++i) {
    if (!node.is_used[i]) continue;
    shapes[i] = reader.InputShape(i);
    const auto begin = shapes[i].dims.begin();
    const bool is_complete =
        std::all_of(begin, begin + static_cast<std::ptrdiff_t>(shapes[i].rank),
                    [](std::int64_t dim) { return dim >= 0; });
    if (shapes[i].rank > 0 && is_complete) known[i] = &shapes[i];
  }
  const std::size_t rank = shapes[spec::kInputForward].rank;
  if (rank > 0) CheckAxis(node.label, node.begin_norm_axis, rank);
  if (known[spec::kInputForward] != nullptr) {
    CheckShapes(node.label, node.begin_norm_axis, known);
  }
}

}  // namespace

Node ReadNode(const ort::Api& api, const OrtKernelInfo* info) {
  const Reader reader(api, info);
  Node node;
  node.label = reader.Label();
  node.begin_norm_axis = reader.Integer(node.label, spec::kBeginNormAxis,
                                        spec::kBeginNormAxisDefault);
  node.use_affine =
      reader.Boolean(node.label, spec::kUseAffine, spec::kUseAffineDefault);
  node.epsilon =
      reader.Float(node.label, spec::kEpsilon, spec::kEpsilonDefault);
  node.use_stats =
      reader.Boolean(node.label, spec::kUseStats, spec::kUseStatsDefault);
  for (std::size_t i = 0; i < spec::kNumInputs; ++i) {
    node.is_used[i] = !reader.InputName(i).empty();
  }
  for (std::size_t i = 0; i < spec::kNumOutputs; ++i) {
    node.is_wanted[i] = !reader.OutputName(i).empty();
  }
  if (!node.use_affine) {
    node.is_used[spec::kGamma] = node.is_used[spec::kBeta] = false;
  }
  if (!node.use_stats) {
    node.is_used[spec::kMean] = node.is_used[spec::kVariance] = false;
  }
  CheckEpsilon(node);
  CheckInputs(node);
  CheckOutputs(node);
  CheckKnownShapes(reader, node);
  return node;
}

}  // namespace lnbp
