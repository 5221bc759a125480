// SPDX-License-Identifier: Apache-2.0
//
// The same bits for every number of threads, in place or not, and for every
// address, past the cache or in it.

#include <cmath>
#include <cstddef>
#include <limits>
#include <vector>

#include "check.h"
#include "problem.h"
#include "test_thread_pool.h"

namespace lnbp::test {
namespace {

struct Size {
  std::size_t num_rows;
  std::size_t norm_size;
};

void TestSize(Size size, ElementType type, bool use_stats, Layout layout,
              const Variant* variant) {
  if (size.num_rows * size.norm_size > max_elements) return;
  Problem problem;
  problem.variant = variant;
  problem.type = problem.parameter_type = problem.statistics_type = type;
  problem.num_rows = size.num_rows;
  problem.norm_size = size.norm_size;
  problem.use_stats = use_stats;
  problem.layout = layout;
  const Data data(problem);
  TestThreadPool one_thread(1);
  const Outputs first = RunKernel(problem, data, one_thread);
  // Otherwise the test would prove nothing.
  CHECK_IN(one_thread.num_runs() > 0, problem.Describe());
  for (const bool in_place : {false, true}) {
    for (const std::size_t num_threads : std::vector<std::size_t>{1, 2, 3, 7}) {
      problem.in_place = in_place;
      TestThreadPool pool(num_threads);
      const Outputs outputs = RunKernel(problem, data, pool);
      CHECK_IN(outputs.input_delta == first.input_delta, problem.Describe());
      CHECK_IN(outputs.gamma_delta == first.gamma_delta, problem.Describe());
      CHECK_IN(outputs.beta_delta == first.beta_delta, problem.Describe());
    }
  }
}

// Of the same numbers at every address.
Outputs RunAtAddress(const Problem& problem, bool has_infinite_mean,
                     ThreadPool& pool) {
  Data data(problem);
  if (has_infinite_mean) {
    data.mean.Set(0, std::numeric_limits<double>::infinity());
  }
  return RunKernel(problem, data, pool);
}

// With an infinite mean, a gamma gradient is infinite: where a row's ends are
// computed beside other columns, it must not become NaN.
void TestAddresses(Size size, ElementType type, bool use_stats,
                   bool has_infinite_mean, const Variant* variant) {
  if (size.num_rows * size.norm_size > max_elements) return;
  Problem problem;
  problem.variant = variant;
  problem.type = problem.parameter_type = problem.statistics_type = type;
  problem.num_rows = size.num_rows;
  problem.norm_size = size.norm_size;
  problem.use_stats = use_stats;
  TestThreadPool pool(2);
  const Outputs first = RunAtAddress(problem, has_infinite_mean, pool);
  // Otherwise the test would prove nothing.
  CHECK_IN(!has_infinite_mean || std::isinf(first.gamma_delta.Get(0)),
           problem.Describe());
  for (const std::size_t cache_bytes : std::vector<std::size_t>{0, 1}) {
    for (const std::size_t offset :
         std::vector<std::size_t>{0, 3, 16, 36, 60}) {
      problem.cache_bytes = cache_bytes;
      problem.odd_bytes = offset;
      const Outputs outputs = RunAtAddress(problem, has_infinite_mean, pool);
      CHECK_IN(outputs.input_delta == first.input_delta, problem.Describe());
      CHECK_IN(outputs.gamma_delta == first.gamma_delta, problem.Describe());
      CHECK_IN(outputs.beta_delta == first.beta_delta, problem.Describe());
      CHECK_IN(outputs.input_delta.IsGuardIntact(), problem.Describe());
    }
  }
}

// Of sums that underflow: where a row's ends are computed beside other columns,
// -0 must not become 0 at some addresses alone.
void TestZeros(ElementType type, const Variant* variant) {
  Problem problem;
  problem.variant = variant;
  problem.type = problem.parameter_type = problem.statistics_type = type;
  problem.num_rows = 2;
  problem.norm_size = 20000;
  problem.cache_bytes = 1;
  TestThreadPool pool(1);
  const auto run = [&](std::size_t misalignment) {
    problem.misalignment = misalignment;
    Data data(problem);
    for (std::size_t i = 0; i < problem.norm_size; ++i) {
      data.input_forward.Set(i, -0.25);
      data.output_delta.Set(i, ComputesInDouble(type) ? 0x1p-1074 : 0x1p-149);
      data.input_forward.Set(problem.norm_size + i, -1);
      data.output_delta.Set(problem.norm_size + i, 0);
    }
    for (std::size_t row = 0; row < problem.num_rows; ++row) {
      data.mean.Set(row, 0);
      data.variance.Set(row, 1);
    }
    return RunKernel(problem, data, pool);
  };
  const Outputs first = run(0);
  for (const std::size_t misalignment : std::vector<std::size_t>{1, 4, 7}) {
    const Outputs outputs = run(misalignment);
    CHECK_IN(outputs.gamma_delta == first.gamma_delta, problem.Describe());
  }
}

}  // namespace
}  // namespace lnbp::test

int main(int argc, char** argv) {
  lnbp::test::TakeMaxElements(argc, argv);
  using lnbp::ElementType;
  using lnbp::test::Layout;
  constexpr lnbp::test::Size kSizes[] = {{1500, 64},  {300, 768}, {2100, 257},
                                         {100, 1030}, {70, 9001}, {5, 20000},
                                         {1, 8192}};
  for (const lnbp::test::Size size : kSizes) {
    for (const ElementType type :
         {ElementType::kFloat, ElementType::kDouble, ElementType::kFloat16,
          ElementType::kBfloat16, ElementType::kInt32}) {
      for (const bool use_stats : {true, false}) {
        for (const Layout layout : {Layout::kIdentity, Layout::kScalar}) {
          for (const lnbp::Variant* variant : lnbp::test::VariantsFor(type)) {
            TestSize(size, type, use_stats, layout, variant);
          }
        }
      }
    }
  }
  // Of all kinds: short and long rows, in whole lines or not; by columns.
  constexpr lnbp::test::Size kFewSizes[] = {{70, 64},   {67, 67},  {66, 256},
                                            {70, 768},  {9, 1037}, {65, 2112},
                                            {5, 20000}, {70, 1}};
  for (const lnbp::test::Size size : kFewSizes) {
    for (const ElementType type :
         {ElementType::kFloat, ElementType::kDouble, ElementType::kFloat16,
          ElementType::kBfloat16}) {
      for (const lnbp::Variant* variant : lnbp::test::VariantsFor(type)) {
        const bool use_stats = size.norm_size % 3 != 0;
        TestAddresses(size, type, use_stats, false, variant);
        // In rows that do not end with a vector.
        if (use_stats && size.norm_size % 2 != 0) {
          TestAddresses(size, type, true, true, variant);
        }
      }
    }
  }
  for (const ElementType type : {ElementType::kFloat, ElementType::kDouble}) {
    for (const lnbp::Variant* variant : lnbp::test::VariantsFor(type)) {
      lnbp::test::TestZeros(type, variant);
    }
  }
  return lnbp::test::Result();
}
