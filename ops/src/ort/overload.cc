// SPDX-License-Identifier: Apache-2.0
//
// The callbacks of the runtime: what an overload looks like, and its kernel.

#include "overload.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <limits>
#include <string>

#include "buffers.h"
#include "kernel.h"
#include "node.h"
#include "ort_status.h"
#include "shapes.h"
#include "spec.h"

namespace lnbp {
namespace {

// The state of one node in one session.
struct NodeKernel {
  const ort::Api& api;
  const Overload& overload;
  Node node;
};

class OrtThreadPool final : public ThreadPool {
 public:
  OrtThreadPool(const ort::Api& api, const OrtKernelContext* context)
      : api_(api), context_(context) {}

  bool Run(void (*function)(void*, std::size_t), void* data,
           std::size_t count) noexcept override {
    // 0 batches: any thread takes the next index, so that a slow one takes few.
    status_ =
        api_.KernelContext_ParallelFor(context_, function, count, 0, data);
    return status_ == nullptr;
  }

  OrtStatus* status() const { return status_; }

 private:
  const ort::Api& api_;
  const OrtKernelContext* context_;
  OrtStatus* status_ = nullptr;
};

struct Tensor {
  void* data = nullptr;
  Shape shape;
};

// Both read a shape; where the rank is above kMaxRank they read the rank alone.
void ReferShape(const ort::Api& api, const OrtValue* value, Shape& shape) {
  ort::TensorElementType type;
  const std::int64_t* dims = nullptr;
  ThrowOnError(api.GetTensorElementTypeAndShapeDataReference(
      value, &type, &dims, &shape.rank));
  if (shape.rank <= kMaxRank) {
    std::copy_n(dims, shape.rank, shape.dims.data());
  }
}

// Five calls with an allocation.
void CopyShape(const ort::Api& api, const OrtValue* value, Shape& shape) {
  OrtTensorTypeAndShapeInfo* info = nullptr;
  ThrowOnError(api.GetTensorTypeAndShape(value, &info));
  OrtStatus* status = api.GetDimensionsCount(info, &shape.rank);
  if (status == nullptr && shape.rank <= kMaxRank) {
    status = api.GetDimensions(info, shape.dims.data(), shape.rank);
  }
  api.ReleaseTensorTypeAndShapeInfo(info);
  ThrowOnError(status);
}

void GetInput(const NodeKernel& kernel, const OrtKernelContext* context,
              std::size_t index, Tensor& tensor) {
  const ort::Api& api = kernel.api;
  const OrtValue* value = nullptr;
  ThrowOnError(api.KernelContext_GetInput(context, index, &value));
  if (value == nullptr) {
    throw InvalidNode(kernel.node.label + ": input '" +
                      spec::kInputNames[index] +
                      "' has no value; it is required (feed it).");
  }
  if (kernel.overload.version >= ort::kShapeReferenceVersion) {
    ReferShape(api, value, tensor.shape);
  } else {
    CopyShape(api, value, tensor.shape);
  }
  if (tensor.shape.rank > kMaxRank) {
    throw InvalidNode(kernel.node.label + ": input '" +
                      spec::kInputNames[index] + "' has rank " +
                      std::to_string(tensor.shape.rank) + "; at most " +
                      std::to_string(kMaxRank) + " is supported (reshape it).");
  }
  // GetTensorData came with API 23; this one is in every version, and only its
  // signature would let us write.
  ThrowOnError(
      api.GetTensorMutableData(const_cast<OrtValue*>(value), &tensor.data));
}

void* GetOutput(const NodeKernel& kernel, OrtKernelContext* context,
                std::size_t index, const Shape& shape) {
  if (!kernel.node.is_wanted[index]) return nullptr;
  OrtValue* value = nullptr;
  ThrowOnError(kernel.api.KernelContext_GetOutput(
      context, index, shape.dims.data(), shape.rank, &value));
  if (value == nullptr) return nullptr;
  void* data = nullptr;
  ThrowOnError(kernel.api.GetTensorMutableData(value, &data));
  return data;
}

void Compute(const NodeKernel& kernel, OrtKernelContext* context) {
  const Node& node = kernel.node;
  std::array<Tensor, spec::kNumInputs> inputs;
  InputShapes shapes{};
  for (std::size_t i = 0; i < spec::kNumInputs; ++i) {
    if (!node.is_used[i]) continue;
    GetInput(kernel, context, i, inputs[i]);
    shapes[i] = &inputs[i].shape;
  }
  const Geometry geometry =
      CheckShapes(node.label, node.begin_norm_axis, shapes);
  const Shape& gamma_shape = inputs[spec::kGamma].shape;
  const Shape& beta_shape =
      node.is_used[spec::kBeta] ? inputs[spec::kBeta].shape : gamma_shape;

  Arguments arguments;
  arguments.type = kernel.overload.type;
  arguments.parameter_type = kernel.overload.parameter_type;
  arguments.statistics_type = kernel.overload.statistics_type;
  arguments.num_rows = geometry.num_rows;
  arguments.norm_size = geometry.norm_size;
  arguments.epsilon = node.epsilon;
  arguments.input_forward = inputs[spec::kInputForward].data;
  arguments.output_delta = inputs[spec::kOutputDelta].data;
  arguments.gamma = inputs[spec::kGamma].data;
  arguments.mean = inputs[spec::kMean].data;
  arguments.variance = inputs[spec::kVariance].data;
  arguments.input_delta = GetOutput(kernel, context, spec::kInputDelta,
                                    inputs[spec::kInputForward].shape);
  arguments.gamma_delta =
      GetOutput(kernel, context, spec::kGammaDelta, gamma_shape);
  arguments.beta_delta =
      GetOutput(kernel, context, spec::kBetaDelta, beta_shape);
  arguments.gamma_broadcast = geometry.gamma;
  arguments.beta_broadcast = geometry.beta;
  CheckBuffers(node.label, arguments);

  OrtThreadPool pool(kernel.api, context);
  switch (LayerNormBackprop(arguments, pool)) {
    case KernelResult::kOk:
      break;
    case KernelResult::kOutOfMemory:
      throw std::runtime_error(
          node.label + ": no memory for the sums over rows (free some).");
    case KernelResult::kThreadPoolFailed:
      throw StatusError{pool.status()};
  }
}

const Overload& AsOverload(const ort::CustomOp* op) {
  return *static_cast<const Overload*>(op);
}

const char* LNBP_ORT_CALL GetName(const ort::CustomOp*) {
  return spec::kOpType;
}

const char* LNBP_ORT_CALL GetExecutionProviderType(const ort::CustomOp*) {
  return nullptr;  // the CPU
}

ort::TensorElementType LNBP_ORT_CALL GetInputType(const ort::CustomOp* op,
                                                  std::size_t index) {
  const Overload& overload = AsOverload(op);
  switch (index) {
    case spec::kGamma:
    case spec::kBeta:
      return static_cast<ort::TensorElementType>(overload.parameter_type);
    case spec::kMean:
    case spec::kVariance:
      return static_cast<ort::TensorElementType>(overload.statistics_type);
    default:
      return static_cast<ort::TensorElementType>(overload.type);
  }
}

ort::TensorElementType LNBP_ORT_CALL GetOutputType(const ort::CustomOp* op,
                                                   std::size_t index) {
  const Overload& overload = AsOverload(op);
  return static_cast<ort::TensorElementType>(
      index == spec::kInputDelta ? overload.type : overload.parameter_type);
}

std::size_t LNBP_ORT_CALL GetInputTypeCount(const ort::CustomOp*) {
  return spec::kNumInputs;
}

std::size_t LNBP_ORT_CALL GetOutputTypeCount(const ort::CustomOp*) {
  return spec::kNumOutputs;
}

// Optional to the runtime, all of them, so that the node reader gets to refuse
// what is missing, in words that say why.
ort::Characteristic LNBP_ORT_CALL GetCharacteristic(const ort::CustomOp*,
                                                    std::size_t) {
  return ort::kOptional;
}

ort::MemoryType LNBP_ORT_CALL GetInputMemoryType(const ort::CustomOp*,
                                                 std::size_t) {
  return ort::kMemoryTypeDefault;
}

int LNBP_ORT_CALL GetStartVersion(const ort::CustomOp*) {
  return spec::kOpVersion;
}

int LNBP_ORT_CALL GetEndVersion(const ort::CustomOp*) {
  return std::numeric_limits<int>::max();
}

std::size_t LNBP_ORT_CALL GetMayInplace(int** inputs, int** outputs) {
  static int input = static_cast<int>(spec::kOutputDelta);
  static int output = static_cast<int>(spec::kInputDelta);
  *inputs = &input;
  *outputs = &output;
  return 1;
}

void LNBP_ORT_CALL ReleaseMayInplace(int*, int*) {}

OrtStatus* LNBP_ORT_CALL CreateKernel(const ort::CustomOp* op,
                                      const ort::Api* api,
                                      const OrtKernelInfo* info,
                                      void** kernel) {
  *kernel = nullptr;
  return CatchAll(*api, [=] {
    *kernel = new NodeKernel{*api, AsOverload(op), ReadNode(*api, info)};
  });
}

OrtStatus* LNBP_ORT_CALL ComputeKernel(void* kernel,
                                       OrtKernelContext* context) {
  const NodeKernel& node_kernel = *static_cast<const NodeKernel*>(kernel);
  return CatchAll(node_kernel.api,
                  [&node_kernel, context] { Compute(node_kernel, context); });
}

void LNBP_ORT_CALL DestroyKernel(void* kernel) {
  delete static_cast<NodeKernel*>(kernel);
}

}  // namespace

Overload MakeOverload(std::uint32_t version, ElementType type,
                      ElementType parameter_type, ElementType statistics_type) {
  // All other members stay null. InferOutputShapeFn has to: with it, runtimes
  // up to 1.23 crash on an input that is omitted through "".
  Overload overload{};
  overload.version = version;
  overload.GetName = GetName;
  overload.GetExecutionProviderType = GetExecutionProviderType;
  overload.GetInputType = GetInputType;
  overload.GetInputTypeCount = GetInputTypeCount;
  overload.GetOutputType = GetOutputType;
  overload.GetOutputTypeCount = GetOutputTypeCount;
  overload.KernelDestroy = DestroyKernel;
  overload.GetInputCharacteristic = GetCharacteristic;
  overload.GetOutputCharacteristic = GetCharacteristic;
  overload.GetInputMemoryType = GetInputMemoryType;
  overload.CreateKernelV2 = CreateKernel;
  overload.KernelComputeV2 = ComputeKernel;
  overload.GetStartVersion = GetStartVersion;
  overload.GetEndVersion = GetEndVersion;
  if (version >= ort::kMayInplaceVersion) {
    overload.GetMayInplace = GetMayInplace;
    overload.ReleaseMayInplace = ReleaseMayInplace;
  }
  overload.type = type;
  overload.parameter_type = parameter_type;
  overload.statistics_type = statistics_type;
  return overload;
}

}  // namespace lnbp
