// SPDX-License-Identifier: Apache-2.0

#include "buffers.h"

#include <cstddef>
#include <cstdint>

#include "element_types.h"
#include "errors.h"
#include "spec.h"

namespace lnbp {
namespace {

// An output may begin where an input of its kind does, if there is one.
enum class Kind { kTensor, kParameter, kStatistic };

struct Buffer {
  Kind kind;
  const char* name;
  const void* begin;  // null: absent
  std::size_t bytes;
};

bool Overlap(const Buffer& a, const Buffer& b) {
  if (a.begin == nullptr || b.begin == nullptr) return false;
  const auto first = reinterpret_cast<std::uintptr_t>(a.begin);
  const auto second = reinterpret_cast<std::uintptr_t>(b.begin);
  return first <= second ? second - first < a.bytes : first - second < b.bytes;
}

[[noreturn]] void Refuse(const std::string& node, const Buffer& output,
                         const std::string& other) {
  throw InvalidNode(
      node + ": the buffer of output '" + output.name + "' overlaps that of " +
      other + "; it must be memory of its own, or begin exactly where " +
      (output.kind == Kind::kTensor ? "'input_forward' or 'output_delta' does"
                                    : "'gamma' does") +
      " (bind it elsewhere).");
}

}  // namespace

void CheckBuffers(const std::string& node, const Arguments& arguments) {
  const std::size_t size = arguments.num_rows * arguments.norm_size;
  if (size == 0) return;  // nothing is read
  const std::size_t bytes = size * SizeOf(arguments.type);
  const std::size_t parameter_bytes = SizeOf(arguments.parameter_type);
  const std::size_t gamma_bytes =
      arguments.gamma_broadcast.size() * parameter_bytes;
  const std::size_t beta_bytes =
      arguments.beta_broadcast.size() * parameter_bytes;
  const std::size_t statistics_bytes =
      arguments.num_rows * SizeOf(arguments.statistics_type);
  using spec::kInputNames;
  using spec::kOutputNames;
  // Not beta, which is never read.
  const Buffer inputs[] = {{Kind::kTensor, kInputNames[spec::kInputForward],
                            arguments.input_forward, bytes},
                           {Kind::kTensor, kInputNames[spec::kOutputDelta],
                            arguments.output_delta, bytes},
                           {Kind::kParameter, kInputNames[spec::kGamma],
                            arguments.gamma, gamma_bytes},
                           {Kind::kStatistic, kInputNames[spec::kMean],
                            arguments.mean, statistics_bytes},
                           {Kind::kStatistic, kInputNames[spec::kVariance],
                            arguments.variance, statistics_bytes}};
  const Buffer outputs[] = {{Kind::kTensor, kOutputNames[spec::kInputDelta],
                             arguments.input_delta, bytes},
                            {Kind::kParameter, kOutputNames[spec::kGammaDelta],
                             arguments.gamma_delta, gamma_bytes},
                            {Kind::kParameter, kOutputNames[spec::kBetaDelta],
                             arguments.beta_delta, beta_bytes}};
  for (const Buffer& output : outputs) {
    for (const Buffer& input : inputs) {
      const bool in_place =
          input.kind == output.kind && input.begin == output.begin;
      if (!in_place && Overlap(output, input)) {
        Refuse(node, output, std::string("input '") + input.name + "'");
      }
    }
    for (const Buffer* other = outputs; other != &output; ++other) {
      if (Overlap(output, *other)) {
        Refuse(node, output, std::string("output '") + other->name + "'");
      }
    }
  }
}

}  // namespace lnbp
