// SPDX-License-Identifier: Apache-2.0

#include "kernel.h"

#include <cmath>
#include <cstddef>
#include <limits>
#include <vector>

#include "check.h"
#include "check_outputs.h"
#include "problem.h"
#include "test_thread_pool.h"

namespace lnbp::test {
namespace {

// On every path.
void CheckProblem(Problem problem) {
  if (problem.num_rows * problem.norm_size > max_elements) return;
  const Data data(problem);
  const Expected expected = data.Compute();
  for (const Variant* variant : VariantsFor(problem.type)) {
    problem.variant = variant;
    CheckOutputs(problem, data, expected);
  }
}

void TestTypes() {
  for (const ElementType type : kElementTypes) {
    for (const ElementType parameter_type : {type, ElementType::kFloat}) {
      for (const ElementType statistics_type : {type, ElementType::kFloat}) {
        for (const bool use_affine : {true, false}) {
          for (const bool use_stats : {true, false}) {
            for (const bool in_place : {true, false}) {
              Problem problem;
              problem.type = type;
              problem.parameter_type = parameter_type;
              problem.statistics_type = statistics_type;
              problem.num_rows = 5;
              problem.norm_size = 34;
              problem.use_affine = use_affine;
              problem.use_stats = use_stats;
              problem.in_place = in_place;
              CheckProblem(problem);
            }
          }
        }
      }
    }
  }
}

void TestWantedOutputs() {
  for (const ElementType type : {ElementType::kFloat, ElementType::kFloat16}) {
    for (const std::size_t norm_size : {std::size_t{20}, std::size_t{9000}}) {
      for (const bool wants_gamma_delta : {true, false}) {
        for (const bool wants_beta_delta : {true, false}) {
          Problem problem;
          problem.type = problem.parameter_type = type;
          problem.num_rows = 9;
          problem.norm_size = norm_size;
          problem.wants_gamma_delta = wants_gamma_delta;
          problem.wants_beta_delta = wants_beta_delta;
          CheckProblem(problem);
        }
      }
    }
  }
}

void TestLengths() {
  constexpr std::size_t kLengths[] = {
      1,   2,    3,    7,    15,   16,   17,   63,   64,   65,   127,  128,
      129, 2047, 2048, 2049, 4095, 4096, 4097, 5000, 8191, 8192, 8193, 10001};
  for (const std::size_t norm_size : kLengths) {
    for (const std::size_t num_rows : std::vector<std::size_t>{1, 3, 66}) {
      for (const bool use_stats : {true, false}) {
        for (const bool in_place : {true, false}) {
          Problem problem;
          problem.num_rows = num_rows;
          problem.norm_size = norm_size;
          problem.use_stats = use_stats;
          problem.in_place = in_place;
          problem.misalignment = in_place ? 1 : 0;
          // A row of one column has no variance: epsilon alone scales it.
          if (norm_size <= 3) problem.epsilon = 0.1f;
          CheckProblem(problem);
        }
      }
    }
  }
}

// Every number of elements that can be left over, in every float type, from
// aligned and misaligned rows.
void TestTails() {
  for (const ElementType type :
       {ElementType::kFloat, ElementType::kDouble, ElementType::kFloat16,
        ElementType::kBfloat16}) {
    for (std::size_t norm_size = 4; norm_size <= 70; ++norm_size) {
      Problem problem;
      problem.type = problem.parameter_type = problem.statistics_type = type;
      problem.num_rows = 7;
      problem.norm_size = norm_size;
      problem.use_stats = norm_size % 2 == 0;
      problem.in_place = norm_size % 3 == 0;
      problem.misalignment = norm_size % 5;
      CheckProblem(problem);
    }
  }
}

// Tensors larger than the last-level cache, so that input_delta is stored past
// it, in rows that begin anywhere on a line.
void TestLargerThanCache() {
  for (const ElementType type :
       {ElementType::kFloat, ElementType::kDouble, ElementType::kFloat16,
        ElementType::kBfloat16}) {
    for (const std::size_t norm_size : std::vector<std::size_t>{67, 1024}) {
      for (const bool in_place : {true, false}) {
        Problem problem;
        problem.type = problem.parameter_type = problem.statistics_type = type;
        problem.num_rows = 70;
        problem.norm_size = norm_size;
        problem.in_place = in_place;
        problem.misalignment = 1;
        problem.cache_bytes = 1;
        CheckProblem(problem);
      }
    }
  }
}

// Lengths about those that decide how many elements are converted at a time.
void TestConvertedRows() {
  for (const ElementType type :
       {ElementType::kInt32, ElementType::kUint8, ElementType::kFloat16}) {
    for (const std::size_t norm_size :
         std::vector<std::size_t>{170, 511, 513, 1025, 2048, 2049, 4099}) {
      Problem problem;
      problem.type = type;
      problem.num_rows = 11;
      problem.norm_size = norm_size;
      problem.use_stats = norm_size % 2 == 0;
      problem.misalignment = norm_size % 3;
      problem.cache_bytes = 1;
      CheckProblem(problem);
    }
  }
}

// Tensors beyond the second-level cache, of which rows are summed while others
// are written.
void TestSumsAhead() {
  for (const ElementType type :
       {ElementType::kFloat, ElementType::kDouble, ElementType::kFloat16,
        ElementType::kBfloat16}) {
    for (const std::size_t norm_size :
         std::vector<std::size_t>{129, 1024, 1037, 8200}) {
      for (const bool past_cache : {true, false}) {
        Problem problem;
        problem.type = problem.parameter_type = problem.statistics_type = type;
        problem.num_rows = (1 << 20) / (norm_size * SizeOf(type)) + 66;
        problem.norm_size = norm_size;
        problem.use_stats = past_cache == (norm_size % 2 == 0);
        problem.cache_bytes = past_cache ? 1 : 0;
        problem.misalignment = norm_size % 4;
        CheckProblem(problem);
      }
    }
  }
}

void TestRows() {
  for (const std::size_t num_rows : std::vector<std::size_t>{
           2, 15, 16, 17, 63, 64, 65, 127, 128, 129, 1000, 1025, 4100}) {
    for (const ElementType type :
         {ElementType::kFloat, ElementType::kDouble, ElementType::kBfloat16}) {
      Problem problem;
      problem.type = problem.statistics_type = type;
      problem.num_rows = num_rows;
      problem.norm_size = 24;
      problem.use_stats = num_rows % 2 == 0;
      CheckProblem(problem);
    }
  }
}

void TestMisalignment() {
  for (const ElementType type : kElementTypes) {
    for (const std::size_t misalignment :
         std::vector<std::size_t>{1, 2, 3, 5}) {
      Problem problem;
      problem.type = problem.parameter_type = problem.statistics_type = type;
      problem.num_rows = 4;
      problem.norm_size = 131;
      problem.misalignment = misalignment;
      CheckProblem(problem);
    }
  }
}

// Addresses that are no multiple of an element's size, of all buffers at once:
// past the cache and in it, in place, by rows and by columns.
void TestOddAddresses() {
  enum Place { kOwn, kInPlace, kOverInput };
  struct Case {
    std::size_t odd_bytes;
    std::size_t num_rows;
    std::size_t norm_size;
    Place place;
    bool past_cache;
    bool use_stats;
    Layout layout;
  };
  constexpr Case kCases[] = {
      {1, 70, 131, kOwn, true, true, Layout::kIdentity},
      {2, 66, 128, kOwn, true, false, Layout::kIdentity},
      {3, 7, 67, kInPlace, false, true, Layout::kIdentity},
      {4, 70, 1024, kOverInput, true, false, Layout::kAlongLast},
      {5, 3, 8201, kOwn, true, false, Layout::kIdentity},
      {6, 9, 34, kOverInput, false, true, Layout::kScalar},
      {7, 270, 1037, kOwn, true, true, Layout::kIdentity},
      {0, 70, 132, kOverInput, true, true, Layout::kAlongFirst}};
  for (const ElementType type : kElementTypes) {
    for (const Case& one : kCases) {
      // No rows of integers are summed ahead.
      if (IsInteger(type) && one.odd_bytes == 7) continue;
      Problem problem;
      problem.type = problem.parameter_type = problem.statistics_type = type;
      problem.num_rows = one.num_rows;
      problem.norm_size = one.norm_size;
      problem.in_place = one.place == kInPlace;
      problem.over_input = one.place == kOverInput;
      problem.use_stats = one.use_stats;
      problem.layout = one.layout;
      problem.odd_bytes = one.odd_bytes;
      problem.cache_bytes = one.past_cache ? 1 : 0;
      CheckProblem(problem);
    }
  }
}

void TestLayouts() {
  for (const Layout layout :
       {Layout::kScalar, Layout::kAlongFirst, Layout::kAlongLast}) {
    for (const std::size_t norm_size :
         std::vector<std::size_t>{2, 6, 130, 8200}) {
      for (const std::size_t num_rows : std::vector<std::size_t>{3, 70}) {
        for (const ElementType type :
             {ElementType::kFloat, ElementType::kDouble,
              ElementType::kFloat16}) {
          Problem problem;
          problem.type = type;
          problem.parameter_type = type;
          problem.num_rows = num_rows;
          problem.norm_size = norm_size;
          problem.layout = layout;
          CheckProblem(problem);
        }
      }
    }
  }
}

// Two repeated axes with one that is not between them, and the other way round.
void TestBroadcast() {
  Broadcast inner(1);
  inner.AddAxis(2, true);
  inner.AddAxis(3, false);
  inner.AddAxis(1, true);
  inner.AddAxis(4, true);
  CHECK(inner.size() == 3);
  CHECK(!inner.is_identity());
  std::size_t visited = 0;
  inner.ForEachColumn(24, [&](std::size_t column, std::size_t element) {
    CHECK(column == visited++);
    CHECK(element == column / 4 % 3);
  });
  CHECK(visited == 24);

  Broadcast outer(1);
  outer.AddAxis(2, false);
  outer.AddAxis(3, true);
  outer.AddAxis(4, false);
  outer.AddAxis(5, false);
  CHECK(outer.size() == 40);
  outer.ForEachColumn(120, [](std::size_t column, std::size_t element) {
    CHECK(element == column / 60 * 20 + column % 20);
  });

  Broadcast identity(1);
  identity.AddAxis(2, false);
  identity.AddAxis(3, false);
  CHECK(identity.is_identity());
  CHECK(identity.size() == 6);
}

void TestLargeMean() {
  for (const ElementType type : {ElementType::kFloat, ElementType::kDouble}) {
    for (const std::size_t num_rows : std::vector<std::size_t>{16, 100}) {
      for (const std::size_t norm_size : std::vector<std::size_t>{768, 10000}) {
        Problem problem;
        problem.type = problem.parameter_type = problem.statistics_type = type;
        problem.num_rows = num_rows;
        problem.norm_size = norm_size;
        problem.mean = 1e4;
        for (const bool use_stats : {true, false}) {
          problem.use_stats = use_stats;
          CheckProblem(problem);
        }
      }
    }
  }
}

// Rows whose first columns say little of their mean, between others; by rows
// and by columns.
void TestUnlikeFirstColumns() {
  for (const ElementType type :
       {ElementType::kFloat, ElementType::kDouble, ElementType::kFloat16}) {
    for (const std::size_t norm_size : std::vector<std::size_t>{768, 20000}) {
      Problem problem;
      problem.type = type;
      problem.num_rows = 7;
      problem.norm_size = norm_size;
      problem.use_stats = false;
      Data data(problem);
      for (std::size_t row = 0; row < problem.num_rows; row += 3) {
        for (std::size_t i = 0; i < 32; ++i)
          data.input_forward.Set(row * norm_size + i, 10);
      }
      const Expected expected = data.Compute();
      for (const Variant* variant : VariantsFor(type)) {
        problem.variant = variant;
        CheckOutputs(problem, data, expected);
      }
    }
  }
}

void TestManyRows() {
  for (const bool use_stats : {true, false}) {
    Problem problem;
    problem.num_rows = 100000;
    problem.norm_size = 64;
    problem.use_stats = use_stats;
    CheckProblem(problem);
  }
}

void TestEmpty() {
  for (const Layout layout : {Layout::kIdentity, Layout::kScalar}) {
    Problem problem;
    problem.num_rows = 0;
    problem.norm_size = 6;
    problem.layout = layout;
    CheckProblem(problem);
    problem.num_rows = 3;
    problem.norm_size = 0;
    CheckProblem(problem);
  }
}

// Which of the numbers are NaN or infinite.
std::vector<bool> Poisoned(const Buffer& buffer) {
  std::vector<bool> poisoned(buffer.size());
  for (std::size_t i = 0; i < buffer.size(); ++i) {
    poisoned[i] = !std::isfinite(buffer.Get(i));
  }
  return poisoned;
}

void TestNan(const Variant* variant) {
  constexpr std::size_t kRows = 3;
  constexpr std::size_t kRow = 1;
  const double poisons[] = {std::numeric_limits<double>::quiet_NaN(),
                            std::numeric_limits<double>::infinity()};
  for (const ElementType type :
       {ElementType::kFloat, ElementType::kDouble, ElementType::kFloat16,
        ElementType::kBfloat16}) {
    for (const std::size_t norm_size : std::vector<std::size_t>{5, 9000}) {
      for (const double poison : poisons) {
        for (const bool use_stats : {true, false}) {
          Problem problem;
          problem.type = problem.parameter_type = type;
          problem.num_rows = kRows;
          problem.norm_size = norm_size;
          problem.use_stats = use_stats;
          problem.variant = variant;
          const std::size_t column = norm_size - 2;
          const std::size_t position = kRow * norm_size + column;
          std::vector<bool> row(kRows * norm_size);
          for (std::size_t i = 0; i < norm_size; ++i) {
            row[kRow * norm_size + i] = true;
          }
          const std::vector<bool> no_column(norm_size);
          const std::vector<bool> all_columns(norm_size, true);
          std::vector<bool> one_column(norm_size);
          one_column[column] = true;
          TestThreadPool pool(2);

          Data data(problem);
          data.input_forward.Set(position, poison);
          Outputs outputs = RunKernel(problem, data, pool);
          CHECK_IN(Poisoned(outputs.input_delta) == row, problem.Describe());
          CHECK_IN(Poisoned(outputs.gamma_delta) ==
                       (use_stats ? one_column : all_columns),
                   problem.Describe());
          CHECK_IN(Poisoned(outputs.beta_delta) == no_column,
                   problem.Describe());

          data = Data(problem);
          data.output_delta.Set(position, poison);
          outputs = RunKernel(problem, data, pool);
          CHECK_IN(Poisoned(outputs.input_delta) == row, problem.Describe());
          CHECK_IN(Poisoned(outputs.gamma_delta) == one_column,
                   problem.Describe());
          CHECK_IN(Poisoned(outputs.beta_delta) == one_column,
                   problem.Describe());
        }
      }
    }
  }
}

// Some instructions that convert to bfloat16 take subnormal numbers for 0.
void TestSubnormalBfloat16(const Variant* variant) {
  constexpr long double kSmallestNormal = 0x1p-126L;
  constexpr long double kSpacing = 0x1p-133L;
  Problem problem;
  problem.type = ElementType::kBfloat16;
  problem.num_rows = 5;
  problem.norm_size = 100;
  problem.variant = variant;
  Data data(problem);
  for (std::size_t i = 0; i < data.output_delta.size(); ++i) {
    data.output_delta.Set(
        i, static_cast<double>(data.output_delta.Get(i)) * 0x1p-126);
  }
  TestThreadPool pool(1);
  const Outputs outputs = RunKernel(problem, data, pool);
  const Expected expected = data.Compute();
  std::size_t num_subnormal = 0;
  for (std::size_t i = 0; i < data.output_delta.size(); ++i) {
    const long double value = outputs.input_delta.Get(i);
    const long double wanted = expected.input_delta[i];
    if (std::abs(wanted) < kSmallestNormal) ++num_subnormal;
    // Float's own spacing down there is 2^-16 of bfloat16's.
    CHECK_IN(std::abs(value - wanted) <=
                 kSpacing * 0.501L + 0x1p-8L * std::abs(wanted),
             problem.Describe());
  }
  // Of both kinds, or nothing was tested.
  CHECK(num_subnormal > 0 && num_subnormal < data.output_delta.size());
}

// The only errors of the arithmetic: both come back as a result.
void TestFailures() {
  class FailingPool final : public ThreadPool {
   public:
    bool Run(void (*)(void*, std::size_t), void*,
             std::size_t) noexcept override {
      return false;
    }
  };
  for (const std::size_t norm_size : std::vector<std::size_t>{1000, 10000}) {
    Problem problem;
    problem.num_rows = 60;
    problem.norm_size = norm_size;
    FailingPool pool;
    CHECK(RunKernel(problem, Data(problem), pool).result ==
          KernelResult::kThreadPoolFailed);
  }
  // More columns than there is memory; they are never read.
  Arguments arguments;
  arguments.type = arguments.parameter_type = arguments.statistics_type =
      ElementType::kFloat;
  arguments.num_rows = 2;
  arguments.norm_size = std::numeric_limits<std::size_t>::max() / 16;
  arguments.epsilon = 1e-5f;
  float element = 0;
  arguments.input_forward = arguments.output_delta = &element;
  arguments.input_delta = arguments.gamma_delta = &element;
  arguments.gamma = &element;
  arguments.gamma_broadcast = Broadcast(1);
  arguments.gamma_broadcast.AddAxis(arguments.norm_size, true);
  TestThreadPool pool(1);
  CHECK(LayerNormBackprop(arguments, pool) == KernelResult::kOutOfMemory);
}

}  // namespace
}  // namespace lnbp::test

int main(int argc, char** argv) {
  using namespace lnbp::test;
  TakeMaxElements(argc, argv);
  TestTypes();
  TestWantedOutputs();
  TestLengths();
  TestTails();
  TestLargerThanCache();
  TestConvertedRows();
  TestSumsAhead();
  TestRows();
  TestMisalignment();
  TestOddAddresses();
  TestLayouts();
  TestBroadcast();
  TestLargeMean();
  TestUnlikeFirstColumns();
  TestManyRows();
  TestEmpty();
  for (const lnbp::Variant* variant : AvailableVariants()) {
    TestNan(variant);
    TestSubnormalBfloat16(variant);
  }
  TestFailures();
  return Result();
}
