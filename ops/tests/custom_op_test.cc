// SPDX-License-Identifier: Apache-2.0
//
// The glue, against a runtime that is made up.

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <set>
#include <string>
#include <vector>

#include "check.h"
#include "fake_ort.h"
#include "lnbp_onnx/custom_ops.h"
#include "overload.h"

namespace lnbp::test {
namespace {

using ort::Api;
using ort::ApiBase;
using ort::CustomOp;

// Each has a domain of its own, as each runtime in a process has.
Api api_1_17 = MakeApi();
Api api_1_18 = MakeApi();
Api api_1_31 = MakeApi();
Api failing_api = MakeApi();

ApiBase Base(const char* (*version)(), const Api* (*get_api)(std::uint32_t)) {
  return {get_api, version};
}

OrtStatus* Register(OrtSessionOptions& options, const ApiBase& base) {
  return RegisterCustomOps(&options,
                           reinterpret_cast<const OrtApiBase*>(&base));
}

// The status's message, or "" where there is none. Releases it.
std::string Take(OrtStatus* status) {
  if (status == nullptr) return "";
  const std::string message = status->message;
  api_1_17.ReleaseStatus(status);
  return message;
}

void TestRegistration() {
  const ApiBase base_1_17 = Base([] { return "1.17.3"; },
                                 [](std::uint32_t version) -> const Api* {
                                   return version <= 17 ? &api_1_17 : nullptr;
                                 });
  const ApiBase base_1_31 =
      Base([] { return "1.31.1"; },
           [](std::uint32_t) -> const Api* { return &api_1_31; });
  const ApiBase base_1_18 =
      Base([] { return "1.18.0"; },
           [](std::uint32_t) -> const Api* { return &api_1_18; });
  const ApiBase bases[] = {base_1_17, base_1_18, base_1_31};
  constexpr std::uint32_t versions[] = {17, 18, 24};
  for (std::size_t i = 0; i < 3; ++i) {
    const ApiBase& base = bases[i];
    OrtSessionOptions first;
    OrtSessionOptions second;
    CHECK(Register(first, base) == nullptr);
    CHECK(Register(second, base) == nullptr);
    CHECK(first.domains.size() == 1 && first.domains == second.domains);
    const OrtCustomOpDomain& domain = *first.domains[0];
    CHECK(domain.name == "lnbp");
    CHECK(domain.ops.size() == 45);
    std::set<std::vector<int>> signatures;
    for (const CustomOp* op : domain.ops) {
      CHECK(op->version == versions[i]);
      CHECK((op->GetMayInplace != nullptr) == (versions[i] >= 18));
      CHECK(std::string(op->GetName(op)) == "LayerNormBackprop");
      CHECK(op->InferOutputShapeFn == nullptr);
      std::vector<int> signature;
      for (std::size_t input = 0; input < op->GetInputTypeCount(op); ++input) {
        signature.push_back(op->GetInputType(op, input));
      }
      CHECK(signature.size() == 6);
      CHECK(signature[1] == signature[0] && signature[3] == signature[2] &&
            signature[5] == signature[4]);
      CHECK(op->GetOutputType(op, 0) == signature[0]);
      CHECK(op->GetOutputType(op, 1) == signature[2]);
      CHECK(op->GetOutputType(op, 2) == signature[2]);
      signatures.insert(signature);
    }
    CHECK(signatures.size() == 45);
  }

  int* inputs = nullptr;
  int* outputs = nullptr;
  OrtSessionOptions options;
  CHECK(Register(options, base_1_31) == nullptr);
  const CustomOp& op = *options.domains[0]->ops[0];
  CHECK(op.GetMayInplace(&inputs, &outputs) == 1);
  CHECK(inputs[0] == 1 && outputs[0] == 0);
  op.ReleaseMayInplace(inputs, outputs);
}

void TestOldRuntime() {
  const ApiBase base = Base([] { return "1.16.3"; },
                            [](std::uint32_t version) -> const Api* {
                              CHECK(version == 1);
                              return &api_1_17;
                            });
  OrtSessionOptions options;
  CHECK(Take(Register(options, base)) ==
        "lnbp: onnxruntime 1.16.3 is too old; 1.17 or newer is needed "
        "(upgrade onnxruntime).");
  CHECK(options.domains.empty());
}

void TestFailedRegistration() {
  failing_api.CustomOpDomain_Add = [](OrtCustomOpDomain*, const CustomOp*) {
    return NewStatus(1, "refused");
  };
  const ApiBase base =
      Base([] { return "1.20.0"; },
           [](std::uint32_t) -> const Api* { return &failing_api; });
  OrtSessionOptions options;
  const int domains_before = num_domains;
  CHECK(Take(Register(options, base)) == "refused");
  CHECK(num_domains == domains_before);
}

const CustomOp& FloatOp() {
  std::size_t count = 0;
  const OrtCustomOp* const* ops = LnbpGetCustomOps(&count);
  CHECK(count == 45);
  return *reinterpret_cast<const CustomOp*>(ops[0]);
}

// That of a runtime which hands out shapes without copying them.
const CustomOp& NewFloatOp() {
  const ApiBase base =
      Base([] { return "1.31.1"; },
           [](std::uint32_t) -> const Api* { return &api_1_31; });
  OrtSessionOptions options;
  CHECK(Register(options, base) == nullptr);
  return *options.domains[0]->ops[0];
}

std::string CreationError(const OrtKernelInfo& info) {
  const CustomOp& op = FloatOp();
  void* kernel = &kernel;
  const std::string message =
      Take(op.CreateKernelV2(&op, &api_1_17, &info, &kernel));
  CHECK((kernel == nullptr) == !message.empty());
  op.KernelDestroy(kernel);
  return message;
}

struct BadNode {
  OrtKernelInfo info;
  std::string message;
};

OrtKernelInfo With(const char* name, OrtKernelInfo::Attribute value) {
  OrtKernelInfo info;
  info.attributes[name] = value;
  return info;
}

void TestCreation() {
  CHECK(CreationError(OrtKernelInfo()).empty());
  CHECK(CreationError(With("epsilon", 0.0f)).empty());

  const std::string epsilon_range =
      "; it must be finite and at least 0 (the usual value is 1e-5).";
  std::vector<BadNode> bad_nodes = {
      {With("epsilon", -1.0f), "attribute 'epsilon' is -1" + epsilon_range},
      {With("epsilon", std::numeric_limits<float>::infinity()),
       "attribute 'epsilon' is inf" + epsilon_range},
      {With("epsilon", std::int64_t{1}),
       "attribute 'epsilon' has type INT; it must be FLOAT (write it as a "
       "float)."},
      {With("epsilon", std::string("1")),
       "attribute 'epsilon' has type STRING; it must be FLOAT (write it as a "
       "float)."},
      {With("epsilon", std::vector<float>{1}),
       "attribute 'epsilon' has type FLOATS; it must be FLOAT (write it as a "
       "float)."},
      {With("epsilon", std::vector<float>{}),
       "attribute 'epsilon' has another type; it must be FLOAT (write it as a "
       "float)."},
      {With("begin_norm_axis", 1.0f),
       "attribute 'begin_norm_axis' has type FLOAT; it must be INT (write it "
       "as an integer)."},
      {With("begin_norm_axis", std::vector<std::int64_t>{1}),
       "attribute 'begin_norm_axis' has type INTS; it must be INT (write it as "
       "an integer)."},
      {With("use_affine", std::int64_t{2}),
       "attribute 'use_affine' is 2; it must be 0 or 1 (set one of them)."},
      {With("use_stats", std::int64_t{-1}),
       "attribute 'use_stats' is -1; it must be 0 or 1 (set one of them)."},
      {With("use_affine", std::int64_t{0}),
       "output 'gamma_delta' is requested with use_affine=0; it exists "
       "only with use_affine=1 (leave it out, or set use_affine=1 and connect "
       "gamma)."},
  };
  BadNode bad;
  bad.info = With("epsilon", 0.0f);
  bad.info.attributes["use_stats"] = std::int64_t{0};
  bad.message =
      "attribute 'epsilon' is 0; it must be finite and greater than 0, since "
      "use_stats is 0 (the usual value is 1e-5).";
  bad_nodes.push_back(bad);
  bad.info = With("begin_norm_axis", std::int64_t{2});
  bad.info.shapes = {{-1, 3}};
  bad.message =
      "attribute 'begin_norm_axis' is 2; with input_forward of rank 2 it must "
      "be in [-2, 1] (the last axis is -1).";
  bad_nodes.push_back(bad);
  bad.info = OrtKernelInfo();
  bad.info.shapes = {{2, 3}, {-1, 3}, {4}};
  bad.message =
      "input 'gamma' has shape [4]; it must broadcast to the normalised axes "
      "[3], or be 1-D with as many elements as they have (reshape it, or move "
      "begin_norm_axis).";
  bad_nodes.push_back(bad);
  bad.info = OrtKernelInfo();
  bad.info.inputs = {"x", "dy", "", "", "mean", "var"};
  bad.message =
      "input 'gamma' is missing; it is required with use_affine=1 (connect it, "
      "or set use_affine=0).";
  bad_nodes.push_back(bad);
  bad.info.inputs = {"x", "dy", "gamma", "", "mean"};
  bad.message =
      "input 'variance' is missing; it is required with use_stats=1 (connect "
      "it, or set use_stats=0 to have it computed).";
  bad_nodes.push_back(bad);
  bad.info.inputs = {"x"};
  bad.message = "input 'output_delta' is missing; it is required (connect it).";
  bad_nodes.push_back(bad);
  bad.info = OrtKernelInfo();
  bad.info.outputs[0] = "";
  bad.message =
      "output 'input_delta' is omitted; it is required (give it a name, used "
      "or not).";
  bad_nodes.push_back(bad);

  for (const BadNode& node : bad_nodes) {
    const std::string message = CreationError(node.info);
    CHECK_IN(message == "LayerNormBackprop node 'n': " + node.message, message);
  }
  OrtKernelInfo unnamed = With("epsilon", -1.0f);
  unnamed.name = "";
  CHECK(CreationError(unnamed).find(
            "LayerNormBackprop node with output 'dx': attribute") == 0);
  unnamed.outputs = {"", "", ""};
  CHECK(CreationError(unnamed).find("LayerNormBackprop: attribute") == 0);
}

// Two rows of three columns; the last two have nothing but gamma in common.
struct Run {
  std::vector<float> x = {1, 2, 4, 3, 3, 9};
  std::vector<float> dy = {1, 0, -1, 2, 5, 0};
  std::vector<float> gamma = {1, 2, 3};
  std::vector<float> statistics = {2, 4};
  OrtKernelContext context;

  Run() {
    context.inputs = {{{2, 3}, x.data()},       {{2, 3}, dy.data()},
                      {{3}, gamma.data()},      {{3}, gamma.data()},
                      {{2}, statistics.data()}, {{2, 1}, statistics.data()}};
    context.output_data.resize(3);
    context.outputs.resize(3);
  }

  std::string Error(const OrtKernelInfo& info) {
    const std::string message = Error(info, FloatOp());
    CHECK_IN(Error(info, NewFloatOp()) == message, message);
    return message;
  }

  std::string Error(const OrtKernelInfo& info, const CustomOp& op) {
    void* kernel = nullptr;
    CHECK(op.CreateKernelV2(&op, &api_1_31, &info, &kernel) == nullptr);
    const std::string message = Take(op.KernelComputeV2(kernel, &context));
    op.KernelDestroy(kernel);
    return message;
  }
};

void TestCompute() {
  Run run;
  CHECK(run.Error(OrtKernelInfo()).empty());
  CHECK(run.context.outputs[0].dims == (std::vector<std::int64_t>{2, 3}));
  CHECK(run.context.outputs[1].dims == (std::vector<std::int64_t>{3}));
  const std::vector<float>& gamma_delta = run.context.output_data[1];
  const float rstd0 = 1 / std::sqrt(2 + 1e-5f);
  const float rstd1 = 1 / std::sqrt(4 + 1e-5f);
  CHECK(std::abs(gamma_delta[0] - (-1 * rstd0 + -2 * rstd1)) < 1e-6f);
  CHECK(std::abs(gamma_delta[1] - (0 * rstd0 + -5 * rstd1)) < 1e-6f);
  CHECK(std::abs(gamma_delta[2] - (-2 * rstd0)) < 1e-6f);
  CHECK(run.context.output_data[2] == (std::vector<float>{3, 5, -1}));

  // What the attributes make unused is not even looked at.
  OrtKernelInfo plain = With("use_affine", std::int64_t{0});
  plain.attributes["use_stats"] = std::int64_t{0};
  plain.outputs = {"dx"};
  Run unused;
  for (const std::size_t i : std::vector<std::size_t>{2, 3, 4, 5})
    unused.context.inputs[i].dims = {77};
  CHECK(unused.Error(plain).empty());
  CHECK(unused.context.output_data[1].empty());

  // beta absent: gamma's shape.
  OrtKernelInfo without_beta;
  without_beta.inputs[spec::kBeta] = "";
  without_beta.outputs = {"dx", "", "dbeta"};
  Run scalar;
  scalar.context.inputs[spec::kGamma].dims = {};
  CHECK(scalar.Error(without_beta).empty());
  CHECK(scalar.context.outputs[2].dims.empty());
  CHECK(scalar.context.output_data[1].empty());
  CHECK(scalar.context.output_data[2] == std::vector<float>{7});
}

// What has no elements may have no address, and lengths beside a 0 that no size
// can hold the product of.
void TestEmptyTensors() {
  Run no_rows;
  for (const std::size_t i : {spec::kInputForward, spec::kOutputDelta,
                              spec::kMean, spec::kVariance}) {
    no_rows.context.inputs[i].data = nullptr;
    no_rows.context.inputs[i].dims[0] = 0;
  }
  CHECK(no_rows.Error(OrtKernelInfo()).empty());
  CHECK(no_rows.context.output_data[1] == std::vector<float>(3));
  CHECK(no_rows.context.output_data[2] == std::vector<float>(3));

  Run no_columns;
  for (const std::size_t i :
       {spec::kInputForward, spec::kOutputDelta, spec::kGamma, spec::kBeta}) {
    no_columns.context.inputs[i].data = nullptr;
    no_columns.context.inputs[i].dims.back() = 0;
  }
  CHECK(no_columns.Error(OrtKernelInfo()).empty());
  CHECK(no_columns.context.output_data[1].empty());

  for (const std::int64_t axis : {-1, 1, 0}) {
    OrtKernelInfo plain = With("use_affine", std::int64_t{0});
    plain.attributes["use_stats"] = std::int64_t{0};
    plain.attributes["begin_norm_axis"] = axis;
    plain.outputs = {"dx"};
    Run huge;
    constexpr std::int64_t kMany = std::int64_t{1} << 40;
    huge.context.inputs = {{{kMany, kMany + 1, 0}, nullptr},
                           {{kMany, kMany + 1, 0}, nullptr}};
    CHECK(huge.Error(plain).empty());
  }
}

void TestOverlap() {
  Run run;
  run.context.places = {nullptr, nullptr, run.dy.data() + 1};
  CHECK(run.Error(OrtKernelInfo()) ==
        "LayerNormBackprop node 'n': the buffer of output 'beta_delta' "
        "overlaps that of input 'output_delta'; it must be memory of its own, "
        "or begin exactly where 'gamma' does (bind it elsewhere).");
  CHECK(run.dy == Run().dy);
}

void TestComputeErrors() {
  Run wrong_shape;
  wrong_shape.context.inputs[spec::kOutputDelta].dims = {3, 2};
  CHECK(wrong_shape.Error(OrtKernelInfo()) ==
        "LayerNormBackprop node 'n': input 'output_delta' has shape [3, 2] "
        "and input_forward [2, 3]; the two must be equal (connect the gradient "
        "with respect to the normalised output).");

  Run no_value;
  no_value.context.inputs.resize(5);
  CHECK(no_value.Error(OrtKernelInfo()) ==
        "LayerNormBackprop node 'n': input 'variance' has no value; it is "
        "required (feed it).");

  Run many_axes;
  many_axes.context.inputs[0].dims.assign(65, 1);
  CHECK(many_axes.Error(OrtKernelInfo()) ==
        "LayerNormBackprop node 'n': input 'input_forward' has rank 65; at "
        "most 64 is supported (reshape it).");

  // Enough columns for two tasks.
  OrtKernelInfo plain = With("use_affine", std::int64_t{0});
  plain.attributes["use_stats"] = std::int64_t{0};
  plain.outputs = {"dx"};
  Run no_threads;
  std::vector<float> row(20000);
  no_threads.context.inputs = {{{20000}, row.data()}, {{20000}, row.data()}};
  no_threads.context.fails_in_parallel = true;
  CHECK(no_threads.Error(plain) == "no threads");
}

}  // namespace
}  // namespace lnbp::test

int main() {
  using namespace lnbp::test;
  TestRegistration();
  TestOldRuntime();
  TestFailedRegistration();
  TestCreation();
  TestCompute();
  TestEmptyTensors();
  TestOverlap();
  TestComputeErrors();
  CHECK(num_statuses == 0);
  CHECK(num_infos == 0);
  return Result();
}
