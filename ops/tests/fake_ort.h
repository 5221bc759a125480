// SPDX-License-Identifier: Apache-2.0
//
// As much of a runtime as the library calls. It counts what it hands out, so
// that a test sees what was not given back.

#ifndef LNBP_ONNX_TESTS_FAKE_ORT_H_
#define LNBP_ONNX_TESTS_FAKE_ORT_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <string>
#include <variant>
#include <vector>

#include "ort_abi.h"
#include "spec.h"
#include "test_thread_pool.h"

struct OrtStatus {
  int code;
  std::string message;
};

struct OrtCustomOpDomain {
  std::string name;
  std::vector<const lnbp::ort::CustomOp*> ops;
};

struct OrtSessionOptions {
  std::vector<OrtCustomOpDomain*> domains;
};

struct OrtValue {
  std::vector<std::int64_t> dims;
  void* data = nullptr;
};

struct OrtTensorTypeAndShapeInfo {
  std::vector<std::int64_t> dims;
};

struct OrtTypeInfo {
  OrtTensorTypeAndShapeInfo tensor_info;
};

struct OrtKernelInfo {
  using Attribute = std::variant<std::int64_t, float, std::string,
                                 std::vector<std::int64_t>, std::vector<float>>;

  std::string name = "n";
  std::vector<std::string> inputs = {"x", "dy", "gamma", "beta", "mean", "var"};
  std::vector<std::string> outputs = {"dx", "dgamma", "dbeta"};
  std::map<std::string, Attribute> attributes;
  std::vector<std::vector<std::int64_t>> shapes;  // none: not known
};

struct OrtKernelContext {
  std::vector<OrtValue> inputs;
  std::vector<std::vector<float>> output_data;
  std::size_t floats_per_element = 1;  // 2 has room for any type
  std::size_t odd_bytes = 0;           // by which no output is aligned
  std::vector<void*> places;           // of outputs bound by the caller
  std::vector<OrtValue> outputs;
  bool fails_in_parallel = false;
};

namespace lnbp::test {

inline int num_statuses = 0;
inline int num_infos = 0;
inline int num_domains = 0;

inline OrtStatus* NewStatus(int code, const char* message) {
  ++num_statuses;
  return new OrtStatus{code, message};
}

inline OrtStatus* CopyText(const std::string& text, char* out,
                           std::size_t* size) {
  if (out != nullptr) std::memcpy(out, text.c_str(), text.size() + 1);
  *size = text.size() + 1;
  return nullptr;
}

template <typename T>
const T* FindAttribute(const OrtKernelInfo* info, const char* name) {
  const auto found = info->attributes.find(name);
  if (found == info->attributes.end()) return nullptr;
  return std::get_if<T>(&found->second);
}

template <typename T>
OrtStatus* LNBP_ORT_CALL GetAttribute(const OrtKernelInfo* info,
                                      const char* name, T* out) {
  const T* value = FindAttribute<T>(info, name);
  if (value == nullptr) return NewStatus(1, "no such attribute");
  *out = *value;
  return nullptr;
}

template <typename T>
OrtStatus* LNBP_ORT_CALL GetAttributeArray(const OrtKernelInfo* info,
                                           const char* name, T*,
                                           std::size_t* size) {
  if (info->attributes.count(name) == 0) {
    return NewStatus(1, "no such attribute");
  }
  const auto* values = FindAttribute<std::vector<T>>(info, name);
  *size = values == nullptr ? 0 : values->size();
  return nullptr;
}

inline ort::Api MakeApi() {
  ort::Api api;
  std::memset(static_cast<void*>(&api), 0, sizeof(api));
  api.CreateStatus = [](ort::ErrorCode code, const char* message) {
    return NewStatus(code, message);
  };
  api.ReleaseStatus = [](OrtStatus* status) {
    --num_statuses;
    delete status;
  };
  api.CreateCustomOpDomain = [](const char* name, OrtCustomOpDomain** out) {
    ++num_domains;
    *out = new OrtCustomOpDomain{name, {}};
    return static_cast<OrtStatus*>(nullptr);
  };
  api.ReleaseCustomOpDomain = [](OrtCustomOpDomain* domain) {
    --num_domains;
    delete domain;
  };
  api.CustomOpDomain_Add = [](OrtCustomOpDomain* domain,
                              const ort::CustomOp* op) {
    domain->ops.push_back(op);
    return static_cast<OrtStatus*>(nullptr);
  };
  api.AddCustomOpDomain = [](OrtSessionOptions* options,
                             OrtCustomOpDomain* domain) {
    options->domains.push_back(domain);
    return static_cast<OrtStatus*>(nullptr);
  };
  api.KernelInfoGetAttribute_int64 = GetAttribute<std::int64_t>;
  api.KernelInfoGetAttribute_float = GetAttribute<float>;
  api.KernelInfoGetAttribute_string = [](const OrtKernelInfo* info,
                                         const char* name, char* out,
                                         std::size_t* size) {
    const auto* value = FindAttribute<std::string>(info, name);
    return value == nullptr ? NewStatus(1, "no such attribute")
                            : CopyText(*value, out, size);
  };
  api.KernelInfoGetAttributeArray_int64 = GetAttributeArray<std::int64_t>;
  api.KernelInfoGetAttributeArray_float = GetAttributeArray<float>;
  api.KernelInfo_GetNodeName = [](const OrtKernelInfo* info, char* out,
                                  std::size_t* size) {
    return CopyText(info->name, out, size);
  };
  api.KernelInfo_GetInputCount = [](const OrtKernelInfo* info,
                                    std::size_t* out) {
    *out = info->inputs.size();
    return static_cast<OrtStatus*>(nullptr);
  };
  api.KernelInfo_GetInputName = [](const OrtKernelInfo* info, std::size_t i,
                                   char* out, std::size_t* size) {
    return CopyText(info->inputs.at(i), out, size);
  };
  api.KernelInfo_GetOutputCount = [](const OrtKernelInfo* info,
                                     std::size_t* out) {
    *out = info->outputs.size();
    return static_cast<OrtStatus*>(nullptr);
  };
  api.KernelInfo_GetOutputName = [](const OrtKernelInfo* info, std::size_t i,
                                    char* out, std::size_t* size) {
    return CopyText(info->outputs.at(i), out, size);
  };
  api.KernelInfo_GetInputTypeInfo = [](const OrtKernelInfo* info, std::size_t i,
                                       OrtTypeInfo** out) {
    if (i >= info->shapes.size()) return NewStatus(1, "no type");
    ++num_infos;
    *out = new OrtTypeInfo{{info->shapes[i]}};
    return static_cast<OrtStatus*>(nullptr);
  };
  api.CastTypeInfoToTensorInfo = [](const OrtTypeInfo* type_info,
                                    const OrtTensorTypeAndShapeInfo** out) {
    *out = &type_info->tensor_info;
    return static_cast<OrtStatus*>(nullptr);
  };
  api.GetTensorElementTypeAndShapeDataReference =
      [](const OrtValue* value, ort::TensorElementType*,
         const std::int64_t** dims, std::size_t* count) {
        *dims = value->dims.data();
        *count = value->dims.size();
        return static_cast<OrtStatus*>(nullptr);
      };
  api.ReleaseTypeInfo = [](OrtTypeInfo* type_info) {
    --num_infos;
    delete type_info;
  };
  api.GetTensorTypeAndShape = [](const OrtValue* value,
                                 OrtTensorTypeAndShapeInfo** out) {
    ++num_infos;
    *out = new OrtTensorTypeAndShapeInfo{value->dims};
    return static_cast<OrtStatus*>(nullptr);
  };
  api.ReleaseTensorTypeAndShapeInfo = [](OrtTensorTypeAndShapeInfo* info) {
    --num_infos;
    delete info;
  };
  api.GetDimensionsCount = [](const OrtTensorTypeAndShapeInfo* info,
                              std::size_t* out) {
    *out = info->dims.size();
    return static_cast<OrtStatus*>(nullptr);
  };
  api.GetDimensions = [](const OrtTensorTypeAndShapeInfo* info,
                         std::int64_t* dims, std::size_t count) {
    std::copy_n(info->dims.begin(), count, dims);
    return static_cast<OrtStatus*>(nullptr);
  };
  api.GetTensorMutableData = [](OrtValue* value, void** out) {
    *out = value->data;
    return static_cast<OrtStatus*>(nullptr);
  };
  api.KernelContext_GetInput = [](const OrtKernelContext* context,
                                  std::size_t i, const OrtValue** out) {
    *out = i < context->inputs.size() ? &context->inputs[i] : nullptr;
    return static_cast<OrtStatus*>(nullptr);
  };
  api.KernelContext_GetOutput = [](OrtKernelContext* context, std::size_t i,
                                   const std::int64_t* dims, std::size_t rank,
                                   OrtValue** out) {
    std::size_t size = 1;
    for (std::size_t axis = 0; axis < rank; ++axis) {
      size *= static_cast<std::size_t>(dims[axis]);
    }
    std::vector<float>& data = context->output_data.at(i);
    data.assign(context->floats_per_element * size + context->odd_bytes, -1);
    context->outputs.at(i) = {
        {dims, dims + rank},
        reinterpret_cast<unsigned char*>(data.data()) + context->odd_bytes};
    if (i < context->places.size() && context->places[i] != nullptr) {
      context->outputs[i].data = context->places[i];
    }
    *out = &context->outputs[i];
    return static_cast<OrtStatus*>(nullptr);
  };
  api.KernelContext_ParallelFor =
      [](const OrtKernelContext* context, void (*function)(void*, std::size_t),
         std::size_t total, std::size_t, void* data) {
        if (context->fails_in_parallel) return NewStatus(1, "no threads");
        TestThreadPool(3).Run(function, data, total);
        return static_cast<OrtStatus*>(nullptr);
      };
  return api;
}

}  // namespace lnbp::test

#endif  // LNBP_ONNX_TESTS_FAKE_ORT_H_
