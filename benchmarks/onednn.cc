// SPDX-License-Identifier: Apache-2.0
//
// oneDNN's gradient of layer normalisation behind four C functions.

#include <omp.h>

#include <cstdint>
#include <exception>
#include <oneapi/dnnl/dnnl.hpp>
#include <string>
#include <unordered_map>

namespace {

using dnnl::memory;
using dnnl::normalization_flags;
using Backward = dnnl::layer_normalization_backward;
using Forward = dnnl::layer_normalization_forward;

struct Gradient {
  int threads;
  std::string description;
  dnnl::stream stream;
  Backward primitive;
  std::unordered_map<int, memory> arguments;
};

thread_local std::string last_error;

}  // namespace

extern "C" {

struct BenchTensors {
  void* input_forward;
  void* output_delta;
  void* gamma;
  void* beta;
  void* mean;
  void* variance;
  void* input_delta;
  void* gamma_delta;
  void* beta_delta;
};

const char* BenchGradientError() { return last_error.c_str(); }

// Returns null where oneDNN has no such primitive.
void* BenchGradientCreate(std::int64_t rows, std::int64_t columns,
                          const char* type, float epsilon, int threads,
                          const BenchTensors* tensors) try {
  // The thread count is baked into the primitive.
  omp_set_num_threads(threads);
  const std::string name = type;
  const memory::data_type t = name == "float"      ? memory::data_type::f32
                              : name == "bfloat16" ? memory::data_type::bf16
                              : name == "float16"  ? memory::data_type::f16
                                                   : memory::data_type::f64;
  const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  const memory::desc matrix({rows, columns}, t, memory::format_tag::ab);
  const memory::desc statistics({rows}, memory::data_type::f32,
                                memory::format_tag::a);
  const memory::desc parameter({columns}, memory::data_type::f32,
                               memory::format_tag::a);
  const auto flags =
      normalization_flags::use_scale | normalization_flags::use_shift;
  const Forward::primitive_desc forward(
      engine, dnnl::prop_kind::forward_training, matrix, matrix, statistics,
      epsilon, flags);
  const Backward::primitive_desc backward(engine, dnnl::prop_kind::backward,
                                          matrix, matrix, matrix, statistics,
                                          epsilon, flags, forward);

  auto* gradient =
      new Gradient{threads, "", dnnl::stream(engine), Backward(backward), {}};
  const dnnl_version_t* version = dnnl_version();
  gradient->description =
      std::to_string(version->major) + "." + std::to_string(version->minor) +
      "." + std::to_string(version->patch) + ", " + backward.impl_info_str();
  const auto bind = [&](int argument, const memory::desc& desc, void* data) {
    gradient->arguments.emplace(argument, memory(desc, engine, data));
  };
  bind(DNNL_ARG_SRC, matrix, tensors->input_forward);
  bind(DNNL_ARG_DIFF_DST, matrix, tensors->output_delta);
  bind(DNNL_ARG_SCALE, parameter, tensors->gamma);
  bind(DNNL_ARG_SHIFT, parameter, tensors->beta);
  bind(DNNL_ARG_MEAN, statistics, tensors->mean);
  bind(DNNL_ARG_VARIANCE, statistics, tensors->variance);
  bind(DNNL_ARG_DIFF_SRC, matrix, tensors->input_delta);
  bind(DNNL_ARG_DIFF_SCALE, parameter, tensors->gamma_delta);
  bind(DNNL_ARG_DIFF_SHIFT, parameter, tensors->beta_delta);
  return gradient;
} catch (const std::exception& error) {
  last_error = error.what();
  return nullptr;
}

const char* BenchGradientDescription(const void* gradient) {
  return static_cast<const Gradient*>(gradient)->description.c_str();
}

void BenchGradientRun(void* handle, std::int64_t count) {
  auto* gradient = static_cast<Gradient*>(handle);
  omp_set_num_threads(gradient->threads);
  for (; count > 0; --count) {
    gradient->primitive.execute(gradient->stream, gradient->arguments);
    gradient->stream.wait();
  }
}

void BenchGradientDestroy(void* gradient) {
  delete static_cast<Gradient*>(gradient);
}

}  // extern "C"
