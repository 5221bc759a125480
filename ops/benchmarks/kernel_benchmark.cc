// SPDX-License-Identifier: Apache-2.0
//
// Every path of the kernel against the limit that the memory sets: the faster
// of a plain and a non-temporal loop that moves the same bytes, two arrays read
// and one written. All take turns, round after round; each path's results are
// checked first.
//
//     kernel_benchmark [TYPE or ROWSxCOLUMNS]...
//
// measures what is named, by default everything.

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <new>
#include <string>
#include <vector>

#if defined(__SSE2__) || defined(_M_X64)
#include <emmintrin.h>
#define LNBP_HAS_SSE2
#endif

#include "benchmark_thread_pool.h"
#include "kernel.h"
#include "problem.h"
#include "thread_pool.h"
#include "variants.h"

namespace lnbp::benchmarks {
namespace {

using test::Data;
using test::Problem;

struct Type {
  const char* name;
  ElementType type;
  double rounding;  // to the type, relative
};

constexpr Type kTypes[] = {{"float", ElementType::kFloat, 0},
                           {"bfloat16", ElementType::kBfloat16, 0x1p-8},
                           {"float16", ElementType::kFloat16, 0x1p-11},
                           {"double", ElementType::kDouble, 0}};

struct Shape {
  std::size_t num_rows;
  std::size_t norm_size;
};

constexpr Shape kShapes[] = {{128, 768},   {4096, 768},  {8192, 1024},
                             {2048, 4096}, {512, 16384}, {65536, 64},
                             {32768, 256}, {16, 65536}};

constexpr int kRounds = 25;

bool IsClose(const test::Buffer& actual, const test::Reals& expected,
             long double scale, long double compute_error,
             long double rounding) {
  for (std::size_t i = 0; i < expected.size(); ++i) {
    const long double error = std::abs(actual.Get(i) - expected[i]);
    if (!(error <= compute_error * scale +
                       (rounding + 0x1p-24L) * std::abs(expected[i]))) {
      return false;
    }
  }
  return true;
}

// Whether they are its own, not those of a plainer variant.
bool HasFunctions(const Variant& variant, ElementType type) {
  return variant.functions->Find<float>(type) != nullptr ||
         variant.functions->Find<double>(type) != nullptr;
}

// All columns, and rows enough for several tasks.
Problem MakeProblem(const Type& type, const Shape& shape) {
  Problem problem;
  problem.type = problem.parameter_type = problem.statistics_type = type.type;
  problem.num_rows = std::min<std::size_t>(shape.num_rows, 200);
  problem.norm_size = shape.norm_size;
  return problem;
}

bool IsRight(Problem problem, const Data& data, const test::Expected& expected,
             const Type& type, const Variant& variant, ThreadPool& pool) {
  problem.variant = &variant;
  const test::Outputs outputs = test::RunKernel(problem, data, pool);
  return IsClose(outputs.input_delta, expected.input_delta,
                 expected.input_delta_scale, 2e-6L, type.rounding) &&
         IsClose(outputs.gamma_delta, expected.gamma_delta,
                 expected.gamma_delta_scale, 1e-5L, type.rounding) &&
         IsClose(outputs.beta_delta, expected.beta_delta,
                 expected.beta_delta_scale, 1e-5L, type.rounding);
}

// An array that begins with `source` and goes on with copies of it.
class Array {
 public:
  Array(std::size_t bytes, const test::Buffer& source, std::size_t source_bytes)
      : data_(::operator new(bytes, kAlignment)) {
    for (std::size_t i = 0; i < bytes; i += source_bytes) {
      std::memcpy(static_cast<unsigned char*>(data_) + i, source.data(),
                  std::min(source_bytes, bytes - i));
    }
  }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;
  ~Array() { ::operator delete(data_, kAlignment); }

  void* data() const { return data_; }

 private:
  static constexpr std::align_val_t kAlignment{64};
  void* data_;
};

// Integers, which take the same time whatever they are.
void Triad(const std::uint32_t* a, const std::uint32_t* b, std::uint32_t* sum,
           std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) sum[i] = a[i] + b[i];
}

#ifdef LNBP_HAS_SSE2
void TriadPastCache(const std::uint32_t* a, const std::uint32_t* b,
                    std::uint32_t* sum, std::size_t count) {
  for (std::size_t i = 0; i + 4 <= count; i += 4) {
    _mm_stream_si128(
        reinterpret_cast<__m128i*>(sum + i),
        _mm_add_epi32(
            _mm_loadu_si128(reinterpret_cast<const __m128i*>(a + i)),
            _mm_loadu_si128(reinterpret_cast<const __m128i*>(b + i))));
  }
  _mm_sfence();
}
#endif

struct Candidate {
  std::string name;
  std::function<void()> run;
  std::vector<double> times = {};

  double Min() const { return *std::min_element(times.begin(), times.end()); }
  double Median() const {
    std::vector<double> sorted = times;
    std::sort(sorted.begin(), sorted.end());
    return sorted[sorted.size() / 2];
  }
};

void Measure(std::vector<Candidate>& candidates) {
  for (int round = -2; round < kRounds; ++round) {
    for (Candidate& candidate : candidates) {
      const auto begin = std::chrono::steady_clock::now();
      candidate.run();
      const std::chrono::duration<double, std::milli> time =
          std::chrono::steady_clock::now() - begin;
      if (round >= 0) candidate.times.push_back(time.count());
    }
  }
}

using TriadFunction = void (*)(const std::uint32_t*, const std::uint32_t*,
                               std::uint32_t*, std::size_t);

bool Benchmark(const Type& type, const Shape& shape) {
  const Problem problem = MakeProblem(type, shape);
  const Data data(problem);
  const test::Expected expected = data.Compute();

  const std::size_t row_bytes = shape.norm_size * SizeOf(type.type);
  const std::size_t bytes = shape.num_rows * row_bytes;
  const std::size_t source_bytes = problem.num_rows * row_bytes;
  const Array x(bytes, data.input_forward, source_bytes);
  const Array dy(bytes, data.output_delta, source_bytes);
  const Array dx(bytes, data.output_delta, source_bytes);
  const std::size_t statistics_bytes = SizeOf(type.type) * shape.num_rows;
  const std::size_t given_bytes = SizeOf(type.type) * problem.num_rows;
  const Array mean(statistics_bytes, data.mean, given_bytes);
  const Array variance(statistics_bytes, data.variance, given_bytes);
  const Array gamma_delta(row_bytes, data.gamma, row_bytes);
  const Array beta_delta(row_bytes, data.gamma, row_bytes);

  for (const std::size_t num_threads : {1, 2}) {
    BenchmarkThreadPool pool(num_threads);
    std::vector<Candidate> candidates;
    const auto add_triad = [&](const char* name, TriadFunction triad) {
      candidates.push_back(
          {name, [&, triad] {
             // As many tasks as the kernel has at most.
             const std::size_t count = bytes / 4;
             const std::size_t task = (count + 63) / 64 / 16 * 16 + 16;
             ParallelFor(
                 pool, (count + task - 1) / task, [&](std::size_t i) noexcept {
                   const std::size_t begin = i * task;
                   triad(static_cast<const std::uint32_t*>(x.data()) + begin,
                         static_cast<const std::uint32_t*>(dy.data()) + begin,
                         static_cast<std::uint32_t*>(dx.data()) + begin,
                         std::min(task, count - begin));
                 });
           }});
    };
    add_triad("plain", Triad);
#ifdef LNBP_HAS_SSE2
    add_triad("past cache", TriadPastCache);
#endif
    const std::size_t num_triads = candidates.size();
    for (const Variant* variant : test::AvailableVariants()) {
      if (!HasFunctions(*variant, type.type)) continue;
      if (!IsRight(problem, data, expected, type, *variant, pool)) {
        std::fprintf(stderr, "%s %s: wrong results\n", type.name,
                     variant->name);
        return false;
      }
      Arguments arguments;
      arguments.variant = variant;
      arguments.type = arguments.parameter_type = arguments.statistics_type =
          type.type;
      arguments.num_rows = shape.num_rows;
      arguments.norm_size = shape.norm_size;
      arguments.epsilon = problem.epsilon;
      arguments.input_forward = x.data();
      arguments.output_delta = dy.data();
      arguments.gamma = data.gamma.data();
      arguments.mean = mean.data();
      arguments.variance = variance.data();
      arguments.input_delta = dx.data();
      arguments.gamma_delta = gamma_delta.data();
      arguments.beta_delta = beta_delta.data();
      arguments.gamma_broadcast = arguments.beta_broadcast = data.broadcast();
      candidates.push_back({variant->name, [arguments, &pool] {
                              LayerNormBackprop(arguments, pool);
                            }});
    }
    Measure(candidates);
    const auto limit = std::min_element(
        candidates.begin(),
        candidates.begin() + static_cast<std::ptrdiff_t>(num_triads),
        [](const Candidate& a, const Candidate& b) {
          return a.Min() < b.Min();
        });
    std::printf("%-8s %6zux%-6zu %zu  limit %8.3f (%s)", type.name,
                shape.num_rows, shape.norm_size, num_threads, limit->Min(),
                limit->name.c_str());
    for (std::size_t i = num_triads; i < candidates.size(); ++i) {
      const Candidate& path = candidates[i];
      std::printf("  %s %.3f x%.2f (%.2f)", path.name.c_str(), path.Min(),
                  path.Min() / limit->Min(), path.Median() / limit->Median());
    }
    std::printf("\n");
    std::fflush(stdout);
  }
  return true;
}

int Main(const std::vector<std::string>& names) {
  const auto is_named = [&names](const std::string& name, const auto& all,
                                 auto name_of) {
    const auto matches = [&](const auto& other) {
      return std::find(names.begin(), names.end(), name_of(other)) !=
             names.end();
    };
    const bool any = std::any_of(std::begin(all), std::end(all), matches);
    return !any || std::find(names.begin(), names.end(), name) != names.end();
  };
  const auto name_of_type = [](const Type& type) {
    return std::string(type.name);
  };
  const auto name_of_shape = [](const Shape& shape) {
    return std::to_string(shape.num_rows) + "x" +
           std::to_string(shape.norm_size);
  };
  std::printf(
      "type, shape, threads; least time of the limit in ms; of each path the "
      "least time in ms, and the ratio to the limit of the least (of the "
      "median) times\n");
  for (const Type& type : kTypes) {
    if (!is_named(type.name, kTypes, name_of_type)) continue;
    for (const Shape& shape : kShapes) {
      if (!is_named(name_of_shape(shape), kShapes, name_of_shape)) continue;
      if (!Benchmark(type, shape)) return 1;
    }
  }
  return 0;
}

}  // namespace
}  // namespace lnbp::benchmarks

int main(int argc, char** argv) {
  return lnbp::benchmarks::Main({argv + 1, argv + argc});
}
