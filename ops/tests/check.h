// SPDX-License-Identifier: Apache-2.0

#ifndef LNBP_ONNX_TESTS_CHECK_H_
#define LNBP_ONNX_TESTS_CHECK_H_

#include <cstdio>
#include <string>

namespace lnbp::test {

inline int num_failures = 0;

inline void Fail(const char* file, int line, const std::string& what) {
  std::fprintf(stderr, "%s:%d: %s\n", file, line, what.c_str());
  ++num_failures;
}

// The exit code of a test program.
inline int Result() {
  if (num_failures > 0)
    std::fprintf(stderr, "%d checks failed\n", num_failures);
  return num_failures == 0 ? 0 : 1;
}

}  // namespace lnbp::test

#define CHECK(condition)                                  \
  do {                                                    \
    if (!(condition)) {                                   \
      ::lnbp::test::Fail(__FILE__, __LINE__, #condition); \
    }                                                     \
  } while (false)

// `context` is evaluated only where the check fails.
#define CHECK_IN(condition, context)                                     \
  do {                                                                   \
    if (!(condition)) {                                                  \
      ::lnbp::test::Fail(__FILE__, __LINE__,                             \
                         std::string(#condition) + ", in " + (context)); \
    }                                                                    \
  } while (false)

#endif  // LNBP_ONNX_TESTS_CHECK_H_
