// SPDX-License-Identifier: Apache-2.0
//
// The kernel on random problems, on every path, against the definition.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <string>
#include <vector>

#include "check.h"
#include "check_outputs.h"
#include "fuzz.h"
#include "problem.h"
#include "test_thread_pool.h"

namespace lnbp::test {
namespace {

void DrawSizes(Random& random, Problem& problem) {
  switch (random.UpTo(3)) {
    case 0:
      problem.num_rows = random.UpTo(5);
      problem.norm_size = random.UpTo(5);
      break;
    case 1:
      problem.num_rows = random.UpTo(200);
      problem.norm_size = random.UpTo(300);
      break;
    case 2:  // long rows
      problem.num_rows = random.UpTo(20);
      problem.norm_size = random.UpTo(20000);
      break;
    default:  // many rows
      problem.num_rows = random.UpTo(5000);
      problem.norm_size = random.UpTo(40);
  }
  std::vector<Layout> layouts = {Layout::kIdentity, Layout::kScalar};
  if (problem.norm_size % 2 == 0) {
    layouts.push_back(Layout::kAlongFirst);
    layouts.push_back(Layout::kAlongLast);
  }
  problem.layout = random.OneOf(layouts);
}

// Such that neither squares nor sums leave the range of the types.
void DrawScales(Random& random, Problem& problem) {
  int least = -25;
  int most = 15;
  if (problem.type == ElementType::kFloat16) {
    least = -3;
    most = 0;
  } else if (problem.type == ElementType::kDouble &&
             problem.parameter_type == ElementType::kDouble &&
             problem.statistics_type == ElementType::kDouble) {
    least = -100;
    most = 100;
  }
  if (random.OneIn(2)) {
    problem.input_scale = std::pow(10, random.Between(least, most));
  }
  if (random.OneIn(2)) {
    problem.delta_scale = std::pow(10, random.Between(least, most));
  }
  // Half types have few numbers near 1e4: what is not the mean is far from it.
  const bool is_half = problem.type == ElementType::kFloat16 ||
                       problem.type == ElementType::kBfloat16;
  problem.mean = random.OneOf<double>({0, 0, 1, -100, is_half ? 10 : 1e4});
  // The mean of a constant row is the row's number only in its own type, and
  // only where rounding is small beside epsilon.
  problem.is_constant =
      problem.type == problem.statistics_type && random.OneIn(8);
  if (problem.is_constant) problem.input_scale = 1;
}

Problem DrawProblem(Random& random) {
  const std::vector<ElementType> types(std::begin(kElementTypes),
                                       std::end(kElementTypes));
  Problem problem;
  problem.type = random.OneOf(types);
  problem.parameter_type =
      random.OneOf<ElementType>({problem.type, ElementType::kFloat});
  problem.statistics_type =
      random.OneOf<ElementType>({problem.type, ElementType::kFloat});
  DrawSizes(random, problem);
  DrawScales(random, problem);
  problem.use_affine = !random.OneIn(4);
  problem.use_stats = random.OneIn(2);
  problem.epsilon = random.OneOf<float>({1e-5f, 1e-5f, 0.1f, 1e-12f});
  if (problem.use_stats && random.OneIn(4)) problem.epsilon = 0;
  problem.wants_gamma_delta = !random.OneIn(4);
  problem.wants_beta_delta = !random.OneIn(4);
  problem.in_place = random.OneIn(2);
  problem.over_input = !problem.in_place && random.OneIn(4);
  problem.misalignment = random.UpTo(17);
  if (random.OneIn(2)) problem.odd_bytes = random.UpTo(7);
  problem.cache_bytes =
      random.OneOf<std::size_t>({0, 1, 4096, LastLevelCacheBytes()});
  return problem;
}

void Poison(Random& random, ElementType type, Buffer& buffer) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  if (IsInteger(type) || buffer.size() == 0) return;
  buffer.Set(random.UpTo(buffer.size() - 1),
             random.OneOf<double>({std::nan(""), kInfinity, -kInfinity}));
}

void PoisonOne(Random& random, const Problem& problem, Data& data) {
  switch (random.UpTo(4)) {
    case 0:
      return Poison(random, problem.type, data.input_forward);
    case 1:
      return Poison(random, problem.type, data.output_delta);
    case 2:
      return Poison(random, problem.parameter_type, data.gamma);
    case 3:
      return Poison(random, problem.statistics_type, data.mean);
    default:
      return Poison(random, problem.statistics_type, data.variance);
  }
}

long double Rms(const Reals& values) {
  long double sum = 0;
  for (const long double value : values) sum += value * value;
  return values.empty()
             ? 0
             : std::sqrt(sum / static_cast<long double>(values.size()));
}

// What gamma_delta is off by where every xhat is rounded the same way, as those
// of integers are, which take few values: a number of size 4, rounded, is a
// 12th of what the tolerance takes as its unit. It counts where output_delta is
// of one sign, or xhat is 0.
long double RoundingOfXhat(const Expected& expected) {
  long double most = expected.beta_delta_scale;
  for (const long double sum : expected.beta_delta) {
    most = std::max(most, std::abs(sum));
  }
  return most / 12;
}

void CheckSameBits(const Problem& problem, const Data& data) {
  TestThreadPool one(1);
  TestThreadPool four(4);
  const Outputs a = RunKernel(problem, data, one);
  const Outputs b = RunKernel(problem, data, four);
  CHECK_IN(a.input_delta == b.input_delta && a.gamma_delta == b.gamma_delta &&
               a.beta_delta == b.beta_delta,
           problem.Describe());
}

void RunCase(unsigned seed) {
  Random random(seed);
  Problem problem = DrawProblem(random);
  Data data(problem, seed);
  Expected expected = data.Compute();
  // Among thousands of short rows one may have hardly any variance. What is
  // given as statistics need not be the row's, and then the result is larger.
  expected.input_delta_scale =
      std::max(expected.largest_row_scale, Rms(expected.input_delta));
  expected.gamma_delta_scale =
      std::max(expected.gamma_delta_scale, RoundingOfXhat(expected));
  if (random.OneIn(4)) {
    PoisonOne(random, problem, data);
    const Expected poisoned = data.Compute();
    expected.input_delta = poisoned.input_delta;
    expected.gamma_delta = poisoned.gamma_delta;
    expected.beta_delta = poisoned.beta_delta;
  }
  for (const Variant* variant : AvailableVariants()) {
    problem.variant = variant;
    CheckOutputs(problem, data, expected);
    CheckSameBits(problem, data);
  }
}

}  // namespace
}  // namespace lnbp::test

int main(int argc, char** argv) {
  return lnbp::test::Fuzz(argc, argv, lnbp::test::RunCase);
}
