// SPDX-License-Identifier: Apache-2.0
//
// Runs a model that holds LayerNormBackprop nodes from C++, with the kernel
// library:
//
//     run_model MODEL LIBRARY
//
// Every input is of type float and of known shape; it is filled with 0.01,
// 0.02, ... and the outputs are printed.

#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <cstdint>
#include <exception>
#include <filesystem>
#include <iostream>
#include <string>
#include <vector>

namespace {

void Run(const std::filesystem::path& model,
         const std::filesystem::path& library) {
  Ort::Env env;
  Ort::SessionOptions options;
  options.RegisterCustomOpsLibrary(library.c_str());
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
    const std::vector<std::int64_t> shape =
        session.GetInputTypeInfo(i).GetTensorTypeAndShapeInfo().GetShape();
    inputs.push_back(
        Ort::Value::CreateTensor<float>(allocator, shape.data(), shape.size()));
    float* data = inputs.back().GetTensorMutableData<float>();
    const std::size_t count =
        inputs.back().GetTensorTypeAndShapeInfo().GetElementCount();
    for (std::size_t k = 0; k < count; ++k) {
      data[k] = 0.01F * static_cast<float>(k + 1);
    }
  }
  for (std::size_t i = 0; i < num_outputs; ++i) {
    names.emplace_back(session.GetOutputNameAllocated(i, allocator).get());
    output_names.push_back(names.back().c_str());
  }

  const std::vector<Ort::Value> outputs =
      session.Run(Ort::RunOptions(), input_names.data(), inputs.data(),
                  num_inputs, output_names.data(), num_outputs);
  for (std::size_t i = 0; i < num_outputs; ++i) {
    const float* data = outputs[i].GetTensorData<float>();
    const std::size_t count =
        outputs[i].GetTensorTypeAndShapeInfo().GetElementCount();
    std::cout << output_names[i] << ':';
    for (std::size_t k = 0; k < std::min<std::size_t>(count, 8); ++k) {
      std::cout << ' ' << data[k];
    }
    std::cout << (count > 8 ? " ...\n" : "\n");
  }
}

}  // namespace

int main(int argc, char** argv) {
  const char* usage = "usage: run_model MODEL LIBRARY\n";
  if (argc == 2 && std::string(argv[1]) == "--help") {
    std::cout << usage;
    return 0;
  }
  if (argc != 3) {
    std::cerr << usage;
    return 2;
  }
  try {
    Run(argv[1], argv[2]);
  } catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
  }
}
