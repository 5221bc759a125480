// SPDX-License-Identifier: Apache-2.0
//
// Every path of the kernel against the limit that the memory sets: the faster
// of a plain and a non-temporal loop that moves the same bytes, two arrays read
// and one written. All take turns, round after round; each path's results are
// checked first.
//
//     kernel_benchmark [rounds=N] [threads=N] [TYPE, ROWSxCOLUMNS, PATH or
//         CASE]...
//
// measures what is named, by default everything in the plain case: given
// statistics, and arrays that begin at a line. The other cases take turns with
// it, and are compared with it:
//
//     computed                       the statistics are computed
//     x+BYTES, dy+BYTES, dx+BYTES    this array begins so far past a line
//     all+BYTES                      these three do

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <new>
#include <string>
#include <vector>

#if defined(__SSE2__) || defined(_M_X64)
#include <emmintrin.h>
#define LNBP_HAS_SSE2
#endif

#include "benchmark_thread_pool.h"
#include "check.h"
#include "check_outputs.h"
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
};

constexpr Type kTypes[] = {
    {"float", ElementType::kFloat},     {"bfloat16", ElementType::kBfloat16},
    {"float16", ElementType::kFloat16}, {"double", ElementType::kDouble},
    {"int32", ElementType::kInt32},     {"uint8", ElementType::kUint8}};

struct Shape {
  std::size_t num_rows;
  std::size_t norm_size;
};

constexpr Shape kShapes[] = {{128, 768},   {4096, 768},  {8192, 1024},
                             {2048, 4096}, {512, 16384}, {65536, 64},
                             {32768, 256}, {16, 65536}};

// Whether `names` has it, or has none.
bool IsNamed(const std::vector<std::string>& names, const std::string& name) {
  return names.empty() ||
         std::find(names.begin(), names.end(), name) != names.end();
}

// All columns, and rows enough for several tasks.
Problem MakeProblem(const Type& type, const Shape& shape) {
  Problem problem;
  problem.type = problem.parameter_type = problem.statistics_type = type.type;
  problem.num_rows = std::min<std::size_t>(shape.num_rows, 200);
  problem.norm_size = shape.norm_size;
  return problem;
}

// An array that begins with `source` and goes on with copies of it, `offset`
// bytes past the beginning of a line.
class Array {
 public:
  Array(std::size_t bytes, const test::Buffer& source, std::size_t source_bytes,
        std::size_t offset = 0)
      : memory_(::operator new(bytes + offset, kAlignment)),
        data_(static_cast<unsigned char*>(memory_) + offset) {
    for (std::size_t i = 0; i < bytes; i += source_bytes) {
      std::memcpy(data_ + i, source.data(), std::min(source_bytes, bytes - i));
    }
  }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;
  ~Array() { ::operator delete(memory_, kAlignment); }

  void* data() const { return data_; }

 private:
  static constexpr std::align_val_t kAlignment{64};
  void* memory_;
  unsigned char* data_;
};

// What differs from the plain case.
struct Case {
  std::string name;
  bool use_stats = true;
  std::size_t x_offset = 0;
  std::size_t dy_offset = 0;
  std::size_t dx_offset = 0;
};

// False: `name` is not that of a case.
bool ParseCase(const std::string& name, Case& parsed) {
  parsed.name = name;
  if (name == "computed") {
    parsed.use_stats = false;
    return true;
  }
  const std::size_t plus = name.find('+');
  if (plus == std::string::npos) return false;
  const std::string array = name.substr(0, plus);
  const std::size_t offset = std::strtoul(&name[plus + 1], nullptr, 10);
  const bool is_all = array == "all";
  if (is_all || array == "x") parsed.x_offset = offset;
  if (is_all || array == "dy") parsed.dy_offset = offset;
  if (is_all || array == "dx") parsed.dx_offset = offset;
  return parsed.x_offset + parsed.dy_offset + parsed.dx_offset != 0;
}

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

// Each finds the caches as it leaves them itself.
void Measure(std::vector<Candidate>& candidates, int rounds) {
  for (int round = 0; round < rounds; ++round) {
    for (Candidate& candidate : candidates) {
      candidate.run();
      const auto begin = std::chrono::steady_clock::now();
      candidate.run();
      const std::chrono::duration<double, std::milli> time =
          std::chrono::steady_clock::now() - begin;
      candidate.times.push_back(time.count());
    }
  }
}

// What the command line asks for; of an empty list of names everything.
struct Options {
  std::vector<std::string> types;
  std::vector<std::string> shapes;
  std::vector<std::string> paths;
  std::vector<Case> cases = {{"plain"}};
  std::vector<std::size_t> threads = {1, 2};
  int rounds = 25;
};

using TriadFunction = void (*)(const std::uint32_t*, const std::uint32_t*,
                               std::uint32_t*, std::size_t);

void Benchmark(const Type& type, const Shape& shape, const Options& options) {
  const std::vector<Case>& cases = options.cases;
  Problem problem = MakeProblem(type, shape);
  const Data data(problem);
  const test::Expected given = data.Compute();
  problem.use_stats = false;
  const test::Expected computed = Data(problem).Compute();

  const std::size_t row_bytes = shape.norm_size * SizeOf(type.type);
  const std::size_t bytes = shape.num_rows * row_bytes;
  const std::size_t source_bytes = problem.num_rows * row_bytes;
  const Array x(bytes, data.input_forward, source_bytes);
  const Array dy(bytes, data.output_delta, source_bytes);
  const Array dx(bytes, data.output_delta, source_bytes);
  std::vector<std::unique_ptr<Array>> further;
  const auto array_at = [&](std::size_t offset, const Array& plain,
                            const test::Buffer& source) {
    if (offset == 0) return plain.data();
    further.push_back(
        std::make_unique<Array>(bytes, source, source_bytes, offset));
    return further.back()->data();
  };
  struct CaseArrays {
    void* x;
    void* dy;
    void* dx;
  };
  std::vector<CaseArrays> arrays;
  arrays.reserve(cases.size());
  for (const Case& one : cases) {
    arrays.push_back({array_at(one.x_offset, x, data.input_forward),
                      array_at(one.dy_offset, dy, data.output_delta),
                      array_at(one.dx_offset, dx, data.output_delta)});
  }
  const std::size_t statistics_bytes = SizeOf(type.type) * shape.num_rows;
  const std::size_t given_bytes = SizeOf(type.type) * problem.num_rows;
  const Array mean(statistics_bytes, data.mean, given_bytes);
  const Array variance(statistics_bytes, data.variance, given_bytes);
  const Array gamma_delta(row_bytes, data.gamma, row_bytes);
  const Array beta_delta(row_bytes, data.gamma, row_bytes);

  for (const std::size_t num_threads : options.threads) {
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
    for (const Variant* variant : test::VariantsFor(type.type)) {
      if (!IsNamed(options.paths, variant->name)) continue;
      for (const bool use_stats : {true, false}) {
        problem.use_stats = use_stats;
        problem.variant = variant;
        test::CheckOutputs(problem, data, use_stats ? given : computed);
      }
      Arguments arguments;
      arguments.variant = variant;
      arguments.type = arguments.parameter_type = arguments.statistics_type =
          type.type;
      arguments.num_rows = shape.num_rows;
      arguments.norm_size = shape.norm_size;
      arguments.epsilon = problem.epsilon;
      arguments.gamma = data.gamma.data();
      arguments.gamma_delta = gamma_delta.data();
      arguments.beta_delta = beta_delta.data();
      arguments.gamma_broadcast = arguments.beta_broadcast = data.broadcast();
      for (std::size_t i = 0; i < cases.size(); ++i) {
        arguments.input_forward = arrays[i].x;
        arguments.output_delta = arrays[i].dy;
        arguments.input_delta = arrays[i].dx;
        arguments.mean = cases[i].use_stats ? mean.data() : nullptr;
        arguments.variance = cases[i].use_stats ? variance.data() : nullptr;
        candidates.push_back(
            {i == 0 ? variant->name : cases[i].name,
             [arguments, &pool] { LayerNormBackprop(arguments, pool); }});
      }
    }
    Measure(candidates, options.rounds);
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
      const std::size_t number = (i - num_triads) % cases.size();
      const Candidate& one = candidates[i];
      const Candidate& other = number == 0 ? *limit : candidates[i - number];
      std::printf("  %s %.3f x%.2f (%.2f)", one.name.c_str(), one.Min(),
                  one.Min() / other.Min(), one.Median() / other.Median());
    }
    std::printf("\n");
    std::fflush(stdout);
  }
}

int Main(const std::vector<std::string>& arguments) {
  Options options;
  const auto take = [](const std::string& name, const auto& all, auto name_of,
                       std::vector<std::string>& taken) {
    for (const auto& one : all) {
      if (name != name_of(one)) continue;
      taken.push_back(name);
      return true;
    }
    return false;
  };
  const auto name_of = [](const auto& named) { return named.name; };
  const auto name_of_shape = [](const Shape& shape) {
    return std::to_string(shape.num_rows) + "x" +
           std::to_string(shape.norm_size);
  };
  for (const std::string& argument : arguments) {
    Case one;
    if (ParseCase(argument, one)) {
      options.cases.push_back(one);
    } else if (argument.rfind("rounds=", 0) == 0) {
      options.rounds = std::max(std::atoi(&argument[7]), 1);
    } else if (argument.rfind("threads=", 0) == 0) {
      options.threads = {std::strtoul(&argument[8], nullptr, 10)};
    } else if (!take(argument, kTypes, name_of, options.types) &&
               !take(argument, kShapes, name_of_shape, options.shapes) &&
               !take(argument, Variants{}, name_of, options.paths)) {
      std::fprintf(stderr, "%s: no type, shape, path or case\n",
                   argument.c_str());
      return 1;
    }
  }
  std::printf(
      "type, shape, threads; least time of the limit in ms; of each path the "
      "least time in ms, and the ratio to the limit, of each other case that "
      "to the path, of the least (of the median) times\n");
  for (const Type& type : kTypes) {
    if (!IsNamed(options.types, type.name)) continue;
    for (const Shape& shape : kShapes) {
      if (!IsNamed(options.shapes, name_of_shape(shape))) continue;
      Benchmark(type, shape, options);
    }
  }
  return test::Result();
}

}  // namespace
}  // namespace lnbp::benchmarks

int main(int argc, char** argv) {
  return lnbp::benchmarks::Main({argv + 1, argv + argc});
}
