// SPDX-License-Identifier: Apache-2.0

#include "buffers.h"

#include <cstddef>
#include <string>

#include "check.h"
#include "errors.h"

namespace lnbp::test {
namespace {

// Two rows of three columns, everything in one piece of memory: each buffer
// begins where the one before it ends.
struct Memory {
  unsigned char bytes[200] = {};
  Arguments arguments;

  Memory() {
    arguments.type = arguments.parameter_type = arguments.statistics_type =
        ElementType::kFloat;
    arguments.num_rows = 2;
    arguments.norm_size = 3;
    arguments.epsilon = 1e-5f;
    arguments.gamma_broadcast = arguments.beta_broadcast = Broadcast(3);
    arguments.input_forward = bytes;
    arguments.output_delta = bytes + 24;
    arguments.gamma = bytes + 48;
    arguments.mean = bytes + 60;
    arguments.variance = bytes + 68;
    arguments.input_delta = bytes + 76;
    arguments.gamma_delta = bytes + 100;
    arguments.beta_delta = bytes + 112;
  }

  std::string Error() const {
    try {
      CheckBuffers("node", arguments);
    } catch (const InvalidNode& error) {
      return error.what();
    }
    return "";
  }
};

void TestTaken() {
  Memory memory;
  CHECK(memory.Error().empty());
  memory.arguments.input_delta = memory.bytes;
  CHECK(memory.Error().empty());
  memory.arguments.input_forward = memory.bytes + 24;
  memory.arguments.input_delta = memory.bytes + 24;
  CHECK(memory.Error().empty());
  memory.arguments.gamma_delta = memory.bytes + 48;
  CHECK(memory.Error().empty());
  memory.arguments.gamma = memory.arguments.mean = memory.arguments.variance =
      nullptr;
  memory.arguments.gamma_delta = memory.arguments.beta_delta = nullptr;
  CHECK(memory.Error().empty());

  // What has no elements overlaps nothing, wherever it is.
  Memory empty;
  empty.arguments.num_rows = 0;
  empty.arguments.gamma_delta = empty.bytes + 110;
  empty.arguments.input_delta = empty.bytes + 1;
  CHECK(empty.Error().empty());
}

void TestRefused() {
  const std::string tail =
      "; it must be memory of its own, or begin exactly where "
      "'input_forward' or 'output_delta' does (bind it elsewhere).";
  for (const std::size_t offset : {std::size_t{1}, std::size_t{23}}) {
    Memory memory;
    memory.arguments.input_delta = memory.bytes + offset;
    CHECK(memory.Error() ==
          "node: the buffer of output 'input_delta' overlaps that of input "
          "'input_forward'" +
              tail);
  }
  Memory before;
  before.arguments.input_forward = before.bytes + 144;
  before.arguments.input_delta = before.bytes + 121;
  CHECK(before.Error().find("'input_delta' overlaps that of input "
                            "'input_forward'") != std::string::npos);

  // The statistics of later rows are read after earlier rows are written.
  Memory statistics;
  statistics.arguments.mean = statistics.arguments.input_delta;
  CHECK(statistics.Error().find("input 'mean'") != std::string::npos);

  Memory parameters;
  parameters.arguments.beta_delta = parameters.arguments.gamma_delta;
  CHECK(parameters.Error() ==
        "node: the buffer of output 'beta_delta' overlaps that of output "
        "'gamma_delta'; it must be memory of its own, or begin exactly where "
        "'gamma' does (bind it elsewhere).");
  parameters.arguments.beta_delta = parameters.bytes + 52;
  CHECK(parameters.Error().find("input 'gamma'") != std::string::npos);
}

}  // namespace
}  // namespace lnbp::test

int main() {
  using namespace lnbp::test;
  TestTaken();
  TestRefused();
  return Result();
}
