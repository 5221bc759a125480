// SPDX-License-Identifier: Apache-2.0
//
// The loop of a fuzzer. Its program takes for how many seconds to run, and the
// seed of the first case; with 0 seconds it runs that case alone.

#ifndef LNBP_ONNX_TESTS_FUZZ_H_
#define LNBP_ONNX_TESTS_FUZZ_H_

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

#include "check.h"

namespace lnbp::test {

class Random {
 public:
  explicit Random(unsigned seed) : engine_(seed) {}

  std::size_t UpTo(std::size_t most) { return Between<std::size_t>(0, most); }

  template <typename T>
  T Between(T least, T most) {
    return std::uniform_int_distribution<T>(least, most)(engine_);
  }

  bool OneIn(std::size_t n) { return UpTo(n - 1) == 0; }

  template <typename T>
  T OneOf(const std::vector<T>& choices) {
    return choices[UpTo(choices.size() - 1)];
  }

 private:
  std::mt19937 engine_;
};

inline const char* fuzzer = "";
inline unsigned current_seed = 0;

inline void TellHowToRepeat() {
  std::fprintf(stderr, "To run this case again: %s 0 %u\n", fuzzer,
               current_seed);
}

// Runs cases until the time is over or one fails. Returns the exit code.
inline int Fuzz(int argc, char** argv, void (*run_case)(unsigned seed)) {
  using Clock = std::chrono::steady_clock;
  const double seconds = argc > 1 ? std::atof(argv[1]) : 60;
  const unsigned first_seed =
      argc > 2 ? static_cast<unsigned>(std::strtoul(argv[2], nullptr, 0))
               : std::random_device()();
  std::printf("First seed %u\n", first_seed);
  std::fflush(stdout);
  fuzzer = argv[0];
  current_seed = first_seed;
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_set_death_callback(TellHowToRepeat);
#endif
  const auto end = Clock::now() + std::chrono::duration<double>(seconds);
  do {
    run_case(current_seed);
    if (num_failures > 0) {
      TellHowToRepeat();
      return 1;
    }
    ++current_seed;
  } while (Clock::now() < end);
  std::printf("%u cases, none failed\n", current_seed - first_seed);
  return 0;
}

}  // namespace lnbp::test

#endif  // LNBP_ONNX_TESTS_FUZZ_H_
