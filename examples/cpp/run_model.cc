// SPDX-License-Identifier: Apache-2.0
//
// Runs a model that holds LayerNormBackprop nodes from C++, with the kernel
// library that the program is linked with:
//
//     run_model MODEL [LENGTH]
//
// Inputs that have a default keep it. Another one gets 0.01, 0.02, ..., or 0,
// 1, 0, 1, ... where it is of integers; a length that the model leaves open is
// LENGTH, or 2. The first elements of each output are printed.

#include <lnbp_onnx/custom_ops.h>
#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <cstdint>
#include <exception>
#include <filesystem>
#include <iostream>
#include <limits>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

namespace {

constexpr std::size_t kMostPrinted = 8;

template <typename T>
struct Elements {
  using Type = T;
};

// Calls a function for the C++ type of an element type.
template <typename Function>
void WithType(ONNXTensorElementDataType type, const Function& function) {
  switch (type) {
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT:
      return function(Elements<float>());
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE:
      return function(Elements<double>());
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16:
      return function(Elements<Ort::Float16_t>());
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16:
      return function(Elements<Ort::BFloat16_t>());
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8:
      return function(Elements<std::int8_t>());
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT16:
      return function(Elements<std::int16_t>());
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32:
      return function(Elements<std::int32_t>());
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64:
      return function(Elements<std::int64_t>());
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8:
      return function(Elements<std::uint8_t>());
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT16:
      return function(Elements<std::uint16_t>());
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT32:
      return function(Elements<std::uint32_t>());
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT64:
      return function(Elements<std::uint64_t>());
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL:
      return function(Elements<bool>());
    default:
      throw std::runtime_error("A tensor is neither of numbers nor boolean.");
  }
}

template <typename T>
T Drawn(std::size_t index) {
  if constexpr (std::is_integral_v<T>) {
    return static_cast<T>(index % 2);
  } else {
    return T(0.01F * static_cast<float>(index + 1));
  }
}

template <typename T>
double Number(T value) {
  if constexpr (std::is_arithmetic_v<T>) {
    return static_cast<double>(value);
  } else {
    return value.ToFloat();
  }
}

Ort::Value MakeInput(const Ort::TypeInfo& info, std::int64_t length,
                     OrtAllocator* allocator) {
  const auto tensor = info.GetTensorTypeAndShapeInfo();
  std::vector<std::int64_t> shape = tensor.GetShape();
  std::replace_if(
      shape.begin(), shape.end(), [](std::int64_t dim) { return dim < 0; },
      length);
  const ONNXTensorElementDataType type = tensor.GetElementType();
  Ort::Value value =
      Ort::Value::CreateTensor(allocator, shape.data(), shape.size(), type);
  WithType(type, [&value](auto elements) {
    using T = typename decltype(elements)::Type;
    T* data = value.GetTensorMutableData<T>();
    const std::size_t count =
        value.GetTensorTypeAndShapeInfo().GetElementCount();
    for (std::size_t i = 0; i < count; ++i) {
      data[i] = Drawn<T>(i);
    }
  });
  return value;
}

void Print(const std::string& name, const Ort::Value& value) {
  const auto info = value.GetTensorTypeAndShapeInfo();
  std::cout << name << ':';
  WithType(info.GetElementType(), [&value, &info](auto elements) {
    using T = typename decltype(elements)::Type;
    const T* data = value.GetTensorData<T>();
    const std::size_t count = info.GetElementCount();
    for (std::size_t i = 0; i < std::min(count, kMostPrinted); ++i) {
      std::cout << ' ' << Number(data[i]);
    }
    std::cout << (count > kMostPrinted ? " ...\n" : "\n");
  });
}

void Run(const std::filesystem::path& model, std::int64_t length) {
  Ort::Env env;
  Ort::SessionOptions options;
  Ort::ThrowOnError(RegisterCustomOps(options, OrtGetApiBase()));
  Ort::Session session(env, model.c_str(), options);

  Ort::AllocatorWithDefaultOptions allocator;
  std::vector<std::string> names;
  std::vector<const char*> input_names;
  std::vector<const char*> output_names;
  const std::size_t num_inputs = session.GetInputCount();
  const std::size_t num_outputs = session.GetOutputCount();
  // The pointers below point into these strings, so that none may move.
  names.reserve(num_inputs + num_outputs);
  std::vector<Ort::Value> inputs;
  for (std::size_t i = 0; i < num_inputs; ++i) {
    names.emplace_back(session.GetInputNameAllocated(i, allocator).get());
    input_names.push_back(names.back().c_str());
    inputs.push_back(MakeInput(session.GetInputTypeInfo(i), length, allocator));
  }
  for (std::size_t i = 0; i < num_outputs; ++i) {
    names.emplace_back(session.GetOutputNameAllocated(i, allocator).get());
    output_names.push_back(names.back().c_str());
  }

  const std::vector<Ort::Value> outputs =
      session.Run(Ort::RunOptions(), input_names.data(), inputs.data(),
                  num_inputs, output_names.data(), num_outputs);
  std::cout.precision(std::numeric_limits<double>::max_digits10);
  for (std::size_t i = 0; i < num_outputs; ++i) {
    Print(output_names[i], outputs[i]);
  }
}

}  // namespace

int main(int argc, char** argv) {
  const char* usage = "usage: run_model MODEL [LENGTH]\n";
  if (argc == 2 && std::string(argv[1]) == "--help") {
    std::cout << usage;
    return 0;
  }
  std::int64_t length = 2;
  try {
    length = argc == 3 ? std::stoll(argv[2]) : length;
  } catch (const std::logic_error&) {
    length = -1;
  }
  if (argc < 2 || argc > 3 || length < 0) {
    std::cerr << usage;
    return 2;
  }
  try {
    Run(argv[1], length);
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
}
