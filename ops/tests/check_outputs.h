// SPDX-License-Identifier: Apache-2.0
//
// The outputs of the kernel against what is expected, at their tolerances.

#ifndef LNBP_ONNX_TESTS_CHECK_OUTPUTS_H_
#define LNBP_ONNX_TESTS_CHECK_OUTPUTS_H_

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <string>

#include "check.h"
#include "problem.h"
#include "test_thread_pool.h"

namespace lnbp::test {

// The largest error that rounding to `type` makes, relative to the number.
inline long double RoundingError(ElementType type) {
  switch (type) {
    case ElementType::kFloat16:
      return 0x1p-11L;
    case ElementType::kBfloat16:
      return 0x1p-8L;
    case ElementType::kFloat:
      return 0x1p-24L;
    default:
      return 0x1p-53L;
  }
}

// From about where on `type` has infinity instead.
inline long double LargestNumber(ElementType type) {
  switch (type) {
    case ElementType::kFloat16:
      return 65504;
    case ElementType::kBfloat16:
      return 0x1.fep127L;
    case ElementType::kFloat:
      return std::numeric_limits<float>::max();
    default:
      return std::numeric_limits<double>::max();
  }
}

// `compute_error` is relative to `scale`.
inline void CheckClose(const Buffer& actual, ElementType type,
                       const Reals& expected, long double scale,
                       long double compute_error, const std::string& context) {
  CHECK_IN(actual.IsGuardIntact(), context);
  for (std::size_t i = 0; i < expected.size(); ++i) {
    const long double value = actual.Get(i);
    if (!std::isfinite(expected[i])) {
      // An integer of NaN is undefined.
      CHECK_IN(IsInteger(type) || !std::isfinite(value), context);
    } else if (IsInteger(type)) {
      // What an unsigned type cannot hold is undefined.
      const bool is_unsigned =
          type == ElementType::kUint8 || type == ElementType::kUint16 ||
          type == ElementType::kUint32 || type == ElementType::kUint64;
      const long double most = type == ElementType::kInt8    ? 127
                               : type == ElementType::kUint8 ? 255
                                                             : 32767;
      if (std::abs(expected[i]) > most || (is_unsigned && expected[i] < 0)) {
        continue;
      }
      const long double slack = compute_error * scale;
      CHECK_IN(value >= std::trunc(expected[i] - slack) &&
                   value <= std::trunc(expected[i] + slack),
               context);
    } else if (std::abs(expected[i]) > LargestNumber(type)) {
      CHECK_IN(std::abs(value) >= LargestNumber(type), context);
    } else {
      const long double allowed =
          compute_error * scale + RoundingError(type) * std::abs(expected[i]) +
          (type == ElementType::kFloat16 ? 0x1p-25L : 0);
      CHECK_IN(std::abs(value - expected[i]) <= allowed,
               context + std::to_string(i) + ": " + std::to_string(value) +
                   " for " + std::to_string(expected[i]));
    }
  }
}

inline void CheckOutputs(const Problem& problem, const Data& data,
                         const Expected& expected) {
  TestThreadPool pool(3);
  const Outputs outputs = RunKernel(problem, data, pool);
  const std::string context = problem.Describe();
  const bool is_double = ComputesInDouble(problem.type);
  const long double input_error = is_double ? 1e-14L : 2e-6L;
  const long double parameter_error = is_double ? 1e-13L : 3e-6L;
  // Subnormal numbers have an error of their own.
  const long double smallest_normal =
      is_double ? std::numeric_limits<double>::min()
                : static_cast<long double>(std::numeric_limits<float>::min());
  const auto scale_of = [=](long double scale, long double error) {
    return std::max(scale, smallest_normal / error);
  };
  CHECK_IN(outputs.result == KernelResult::kOk, context);
  CheckClose(outputs.input_delta, problem.type, expected.input_delta,
             scale_of(expected.input_delta_scale, input_error), input_error,
             context + "input_delta ");
  if (problem.wants_gamma_delta) {
    CheckClose(outputs.gamma_delta, problem.parameter_type,
               expected.gamma_delta,
               scale_of(expected.gamma_delta_scale, parameter_error),
               parameter_error, context + "gamma_delta ");
  } else {
    CHECK_IN(outputs.gamma_delta.IsUntouched(), context);
  }
  if (problem.wants_beta_delta) {
    CheckClose(outputs.beta_delta, problem.parameter_type, expected.beta_delta,
               scale_of(expected.beta_delta_scale, parameter_error),
               parameter_error, context + "beta_delta ");
  } else {
    CHECK_IN(outputs.beta_delta.IsUntouched(), context);
  }
}

}  // namespace lnbp::test

#endif  // LNBP_ONNX_TESTS_CHECK_OUTPUTS_H_
