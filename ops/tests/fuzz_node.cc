// SPDX-License-Identifier: Apache-2.0
//
// The reading of nodes and shapes, through a runtime that is made up: a random
// node is refused with a message that names what is wrong, or it runs. Which of
// the two it has to be is worked out here once more from the specification; the
// operands are small integers and the statistics 0 and 1, so that the parameter
// gradients are exact.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "check.h"
#include "fake_ort.h"
#include "fuzz.h"
#include "lnbp_onnx/custom_ops.h"
#include "problem.h"

namespace lnbp::test {
namespace {

using Dims = std::vector<std::int64_t>;

ort::Api api = MakeApi();

std::string Take(OrtStatus* status) {
  if (status == nullptr) return "";
  const std::string message = status->message;
  api.ReleaseStatus(status);
  return message;
}

std::size_t Product(const Dims& dims) {
  std::size_t product = 1;
  for (const std::int64_t dim : dims) product *= static_cast<std::size_t>(dim);
  return product;
}

// A node with its operands.
struct Case {
  OrtKernelInfo info;
  std::int64_t axis = spec::kBeginNormAxisDefault;
  bool use_affine = true;
  bool use_stats = true;
  // What is wrong with the attributes, or "".
  std::string bad_attribute;
  std::vector<Dims> shapes;

  bool Has(std::size_t input) const {
    return input < info.inputs.size() && !info.inputs[input].empty();
  }
  bool Uses(std::size_t input) const {
    const bool is_parameter = input == spec::kGamma || input == spec::kBeta;
    const bool is_statistic = input == spec::kMean || input == spec::kVariance;
    return Has(input) && (use_affine || !is_parameter) &&
           (use_stats || !is_statistic);
  }
  bool Wants(std::size_t output) const {
    return output < info.outputs.size() && !info.outputs[output].empty();
  }
  Dims Lead() const {
    const Dims& dims = shapes[0];
    return Dims(dims.begin(), dims.begin() + FirstNormAxis());
  }
  Dims Norm() const {
    const Dims& dims = shapes[0];
    return Dims(dims.begin() + FirstNormAxis(), dims.end());
  }
  std::ptrdiff_t FirstNormAxis() const {
    const auto rank = static_cast<std::int64_t>(shapes[0].size());
    return static_cast<std::ptrdiff_t>(axis < 0 ? axis + rank : axis);
  }
};

OrtKernelInfo::Attribute DrawAttribute(Random& random) {
  switch (random.UpTo(4)) {
    case 0:
      return random.OneOf<std::int64_t>(
          {-1, 2, std::numeric_limits<std::int64_t>::min(),
           std::numeric_limits<std::int64_t>::max()});
    case 1:
      return random.OneOf<float>(
          {-1.0f, std::nanf(""), std::numeric_limits<float>::infinity()});
    case 2:
      return std::string("1");
    case 3:
      return std::vector<std::int64_t>(random.UpTo(2), 1);
    default:
      return std::vector<float>(random.UpTo(2), 1.0f);
  }
}

void DrawAttributes(Random& random, Case& each) {
  each.use_affine = !random.OneIn(4);
  each.use_stats = !random.OneIn(4);
  auto& attributes = each.info.attributes;
  if (each.axis != spec::kBeginNormAxisDefault || random.OneIn(2)) {
    attributes[spec::kBeginNormAxis] = each.axis;
  }
  if (!each.use_affine || random.OneIn(2)) {
    attributes[spec::kUseAffine] = std::int64_t{each.use_affine};
  }
  if (!each.use_stats || random.OneIn(2)) {
    attributes[spec::kUseStats] = std::int64_t{each.use_stats};
  }
  if (each.use_stats) attributes[spec::kEpsilon] = 0.0f;
  if (random.OneIn(8)) {
    const char* name = random.OneOf<const char*>(
        {spec::kUseAffine, spec::kUseStats, spec::kEpsilon});
    attributes[name] = DrawAttribute(random);
    each.bad_attribute = name;
  }
}

// A shape that an input may have, or any other.
Dims DrawShape(Random& random, const Case& each, std::size_t input) {
  const Dims& whole = each.shapes[0];
  const auto rank = static_cast<std::int64_t>(whole.size());
  const bool has_axis =
      each.axis >= -rank && each.axis < rank && !whole.empty();
  Dims dims = whole;
  if (has_axis && (input == spec::kGamma || input == spec::kBeta)) {
    dims = each.Norm();
    for (std::int64_t& dim : dims) {
      if (random.OneIn(4)) dim = 1;
    }
    if (random.OneIn(4)) {
      dims.erase(dims.begin(), dims.begin() + static_cast<std::ptrdiff_t>(
                                                  random.UpTo(dims.size())));
    }
    if (random.OneIn(4)) {
      dims = {static_cast<std::int64_t>(Product(each.Norm()))};
    }
  } else if (has_axis && input >= spec::kMean) {
    dims = each.Lead();
    if (random.OneIn(3)) {
      dims = {static_cast<std::int64_t>(Product(dims))};
    } else if (random.OneIn(2)) {
      dims.resize(whole.size(), 1);
    }
  }
  if (random.OneIn(16)) dims.push_back(random.Between<std::int64_t>(0, 3));
  if (random.OneIn(16) && !dims.empty()) dims.pop_back();
  if (random.OneIn(16) && !dims.empty()) {
    dims[random.UpTo(dims.size() - 1)] = random.Between<std::int64_t>(0, 5);
  }
  if (random.OneIn(64)) dims.assign(kMaxRank + random.UpTo(2), 1);
  return dims;
}

Case DrawCase(Random& random) {
  Case each;
  Dims dims(random.UpTo(5));
  for (std::int64_t& dim : dims) dim = random.Between<std::int64_t>(0, 4);
  if (random.OneIn(64)) dims.assign(kMaxRank + random.UpTo(1), 1);
  const auto rank = static_cast<std::int64_t>(dims.size());
  each.axis = random.Between<std::int64_t>(-rank, std::max(rank - 1, -rank));
  if (random.OneIn(16)) {
    each.axis = random.OneOf<std::int64_t>(
        {rank, -rank - 1, std::numeric_limits<std::int64_t>::min(),
         std::numeric_limits<std::int64_t>::max()});
  }
  DrawAttributes(random, each);
  each.shapes = {dims};
  for (std::size_t i = 1; i < spec::kNumInputs; ++i) {
    each.shapes.push_back(DrawShape(random, each, i));
    if (random.OneIn(16) || (i == spec::kBeta && random.OneIn(3))) {
      each.info.inputs[i] = "";
    }
  }
  if (random.OneIn(16)) each.info.inputs.resize(random.UpTo(6));
  if (!each.use_affine && !random.OneIn(8)) each.info.outputs.resize(1);
  for (std::string& output : each.info.outputs) {
    if (random.OneIn(16)) output = "";
  }
  if (random.OneIn(8)) each.info.name = "";
  // What the graph states of the shapes, as far as it does.
  if (random.OneIn(2)) {
    each.info.shapes = each.shapes;
    for (Dims& stated : each.info.shapes) {
      for (std::int64_t& dim : stated) {
        if (random.OneIn(8)) dim = -1;
      }
      if (random.OneIn(8)) stated.clear();
    }
  }
  return each;
}

bool Broadcasts(const Dims& dims, const Dims& norm) {
  if (dims.size() > norm.size()) return false;
  for (std::size_t i = 0; i < dims.size(); ++i) {
    const std::int64_t target = norm[norm.size() - dims.size() + i];
    if (dims[i] != 1 && dims[i] != target) return false;
  }
  return true;
}

bool IsFlat(const Dims& dims, const Dims& whole) {
  return dims.size() == 1 &&
         static_cast<std::size_t>(dims[0]) == Product(whole);
}

// What the specification says against a case, by the names that its message
// may hold; none where it has to run.
std::vector<std::string> Reasons(const Case& each) {
  std::vector<std::string> reasons;
  const auto blame = [&reasons](const char* name) {
    reasons.push_back(std::string("'") + name + "'");
  };
  if (!each.bad_attribute.empty()) blame(each.bad_attribute.c_str());
  for (std::size_t i = 0; i < spec::kNumInputs; ++i) {
    const bool is_needed = i <= spec::kOutputDelta ||
                           (i == spec::kGamma && each.use_affine) ||
                           (i >= spec::kMean && each.use_stats);
    if (is_needed && !each.Has(i)) blame(spec::kInputNames[i]);
    if (each.Uses(i) && each.shapes[i].size() > kMaxRank) {
      blame(spec::kInputNames[i]);
    }
  }
  for (std::size_t i = 0; i < spec::kNumOutputs; ++i) {
    const bool is_first = i == spec::kInputDelta;
    if (is_first ? !each.Wants(i) : each.Wants(i) && !each.use_affine) {
      blame(spec::kOutputNames[i]);
    }
  }
  const auto rank = static_cast<std::int64_t>(each.shapes[0].size());
  if (rank == 0) {
    blame(spec::kInputNames[spec::kInputForward]);
    return reasons;
  }
  if (each.axis < -rank || each.axis >= rank) {
    blame(spec::kBeginNormAxis);
    return reasons;
  }
  if (each.Uses(spec::kOutputDelta) &&
      each.shapes[spec::kOutputDelta] != each.shapes[0]) {
    blame(spec::kInputNames[spec::kOutputDelta]);
  }
  const Dims norm = each.Norm();
  const Dims lead = each.Lead();
  Dims kept = lead;
  kept.resize(each.shapes[0].size(), 1);
  for (const std::size_t i : {spec::kGamma, spec::kBeta}) {
    const Dims& dims = each.shapes[i];
    if (each.Uses(i) && !Broadcasts(dims, norm) && !IsFlat(dims, norm)) {
      blame(spec::kInputNames[i]);
    }
  }
  for (const std::size_t i : {spec::kMean, spec::kVariance}) {
    const Dims& dims = each.shapes[i];
    if (each.Uses(i) && dims != lead && dims != kept && !IsFlat(dims, lead)) {
      blame(spec::kInputNames[i]);
    }
  }
  return reasons;
}

// The element of a parameter that belongs to a column.
std::size_t ElementOf(const Dims& dims, const Dims& norm, std::size_t column) {
  if (!Broadcasts(dims, norm)) return column;
  std::size_t element = 0;
  std::size_t stride = 1;
  for (std::size_t i = 0; i < dims.size(); ++i) {
    const auto length = static_cast<std::size_t>(norm[norm.size() - 1 - i]);
    const std::int64_t dim = dims[dims.size() - 1 - i];
    if (dim != 1) element += column % length * stride;
    stride *= static_cast<std::size_t>(dim);
    column /= length;
  }
  return element;
}

// Sums of `terms`, one for each element, as the parameter gradient it is.
void CheckSums(const Case& each, const Reals& terms, std::size_t output,
               const OrtValue& actual, ElementType type) {
  const bool is_gamma = output == spec::kGammaDelta;
  const Dims& dims =
      each.shapes[is_gamma || !each.Uses(spec::kBeta) ? spec::kGamma
                                                      : spec::kBeta];
  CHECK(actual.dims == dims);
  const Dims norm = each.Norm();
  const std::size_t columns = Product(norm);
  Reals expected(Product(dims));
  for (std::size_t i = 0; i < terms.size(); ++i) {
    expected[ElementOf(dims, norm, i % columns)] += terms[i];
  }
  WithElementType(type, [&](auto tag) {
    using T = typename decltype(tag)::Type;
    for (std::size_t i = 0; i < expected.size(); ++i) {
      const T wanted = FromCompute<T>(static_cast<ComputeType<T>>(expected[i]));
      using C = ComputeType<T>;
      CHECK(ToCompute<C>(LoadElement<T>(actual.data, i)) ==
            ToCompute<C>(wanted));
    }
  });
}

// With a mean of 0 and a variance of 1 xhat is x.
void CheckInputDelta(const Case& each, const std::vector<Buffer>& operands,
                     const OrtValue& actual, ElementType type) {
  const Dims norm = each.Norm();
  const std::size_t columns = Product(norm);
  const Reals x = operands[spec::kInputForward].GetAll();
  Reals g = operands[spec::kOutputDelta].GetAll();
  for (std::size_t i = 0; each.use_affine && i < g.size(); ++i) {
    const Dims& dims = each.shapes[spec::kGamma];
    g[i] *= operands[spec::kGamma].Get(ElementOf(dims, norm, i % columns));
  }
  for (std::size_t row = 0; row < g.size(); row += columns) {
    long double mean_g = 0;
    long double mean_products = 0;
    for (std::size_t i = row; i < row + columns; ++i) {
      mean_g += g[i] / static_cast<long double>(columns);
      mean_products += g[i] * x[i] / static_cast<long double>(columns);
    }
    for (std::size_t i = row; i < row + columns; ++i) {
      const long double found = type == ElementType::kFloat
                                    ? LoadElement<float>(actual.data, i)
                                    : LoadElement<double>(actual.data, i);
      const long double wanted = g[i] - mean_g - x[i] * mean_products;
      // Of numbers up to 3 * 3 * 3 * 3.
      CHECK(std::abs(found - wanted) <=
            81 * (type == ElementType::kFloat ? 2e-6L : 1e-14L));
    }
  }
}

void CheckOutputs(const Case& each, const std::vector<Buffer>& operands,
                  const OrtKernelContext& context, ElementType type,
                  ElementType parameter_type) {
  CHECK(context.outputs[spec::kInputDelta].dims == each.shapes[0]);
  const Reals delta = operands[spec::kOutputDelta].GetAll();
  Reals products = operands[spec::kInputForward].GetAll();
  for (std::size_t i = 0; i < delta.size(); ++i) products[i] *= delta[i];
  if (each.Wants(spec::kGammaDelta) && each.use_stats) {
    CheckSums(each, products, spec::kGammaDelta,
              context.outputs[spec::kGammaDelta], parameter_type);
  }
  if (each.Wants(spec::kBetaDelta)) {
    CheckSums(each, delta, spec::kBetaDelta, context.outputs[spec::kBetaDelta],
              parameter_type);
  }
  if (each.use_stats &&
      (type == ElementType::kFloat || type == ElementType::kDouble)) {
    CheckInputDelta(each, operands, context.outputs[spec::kInputDelta], type);
  }
}

const ort::CustomOp& DrawOverload(Random& random) {
  // One table as an old runtime has it, one as a new one has.
  static const ort::ApiBase base = {
      [](std::uint32_t) -> const ort::Api* { return &api; },
      [] { return "1.31.1"; }};
  static OrtSessionOptions options;
  if (options.domains.empty()) {
    CHECK(RegisterCustomOps(
              &options, reinterpret_cast<const OrtApiBase*>(&base)) == nullptr);
  }
  std::size_t count = 0;
  const OrtCustomOp* const* old_ops = LnbpGetCustomOps(&count);
  const std::size_t index = random.UpTo(count - 1);
  if (random.OneIn(2)) return *options.domains[0]->ops[index];
  return *reinterpret_cast<const ort::CustomOp*>(old_ops[index]);
}

void RunCase(unsigned seed) {
  Random random(seed);
  const Case each = DrawCase(random);
  const ort::CustomOp& op = DrawOverload(random);
  const auto input_type = [&op](std::size_t i) {
    return static_cast<ElementType>(op.GetInputType(&op, i));
  };

  Problem at;
  if (random.OneIn(2)) at.odd_bytes = random.UpTo(7);
  std::vector<Buffer> operands;
  OrtKernelContext context;
  for (std::size_t i = 0; i < spec::kNumInputs; ++i) {
    operands.emplace_back(input_type(i), Product(each.shapes[i]), at);
    for (std::size_t j = 0; j < operands[i].size(); ++j) {
      operands[i].Set(j, i == spec::kMean       ? 0
                         : i == spec::kVariance ? 1
                                                : random.Between(0, 3));
    }
  }
  for (std::size_t i = 0; i < spec::kNumInputs; ++i) {
    context.inputs.push_back({each.shapes[i], operands[i].data()});
  }
  context.output_data.resize(spec::kNumOutputs);
  context.floats_per_element = 2;
  context.odd_bytes = at.odd_bytes;
  context.outputs.resize(spec::kNumOutputs);

  void* kernel = nullptr;
  std::string message = Take(op.CreateKernelV2(&op, &api, &each.info, &kernel));
  CHECK((kernel == nullptr) == !message.empty());
  if (kernel != nullptr) {
    message = Take(op.KernelComputeV2(kernel, &context));
    op.KernelDestroy(kernel);
  }
  const std::vector<std::string> reasons = Reasons(each);
  if (message.empty()) {
    CHECK_IN(reasons.empty(), reasons[0]);
    if (reasons.empty()) {
      CheckOutputs(each, operands, context, input_type(spec::kInputForward),
                   input_type(spec::kGamma));
    }
  } else {
    CHECK_IN(std::any_of(reasons.begin(), reasons.end(),
                         [&message](const std::string& reason) {
                           return message.find(reason) != std::string::npos;
                         }),
             message);
    // A node with neither a name nor an output has no more to be called by.
    CHECK_IN(message.rfind("LayerNormBackprop node ", 0) == 0 ||
                 message.rfind("LayerNormBackprop: ", 0) == 0,
             message);
    CHECK_IN(message.back() == '.', message);
  }
  CHECK(num_statuses == 0);
  CHECK(num_infos == 0);
}

}  // namespace
}  // namespace lnbp::test

int main(int argc, char** argv) {
  return lnbp::test::Fuzz(argc, argv, lnbp::test::RunCase);
}
