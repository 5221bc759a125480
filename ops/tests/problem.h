// SPDX-License-Identifier: Apache-2.0
//
// Random problems for the kernel, and what they should give: the definition
// again, in long double, one element after the other.

#ifndef LNBP_ONNX_TESTS_PROBLEM_H_
#define LNBP_ONNX_TESTS_PROBLEM_H_

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

#include "broadcast.h"
#include "element_types.h"
#include "kernel.h"
#include "processor.h"
#include "variants.h"

namespace lnbp::test {

using Reals = std::vector<long double>;

// How gamma lies over norm = [norm_size / 2, 2], or [norm_size].
enum class Layout { kIdentity, kScalar, kAlongFirst, kAlongLast };

// Those that this machine has.
inline std::vector<const Variant*> AvailableVariants() {
  std::vector<const Variant*> available;
  for (const Variant& variant : Variants{}) {
    if (variant.is_available()) available.push_back(&variant);
  }
  return available;
}

// Of these the ones with functions of their own for `type`: another takes those
// of one before it.
inline std::vector<const Variant*> VariantsFor(ElementType type) {
  return WithElementType(type, [type](auto tag) {
    using C = ComputeType<typename decltype(tag)::Type>;
    std::vector<const Variant*> variants = AvailableVariants();
    const auto has_none = [type](const Variant* variant) {
      return variant->functions->Find<C>(type) == nullptr;
    };
    variants.erase(std::remove_if(variants.begin(), variants.end(), has_none),
                   variants.end());
    return variants;
  });
}

// How many elements a problem may have, which a test takes as an argument: an
// emulator would need hours for all.
inline std::size_t max_elements = std::numeric_limits<std::size_t>::max();

inline void TakeMaxElements(int argc, char** argv) {
  if (argc > 1) max_elements = std::stoul(argv[1]);
}

struct Problem {
  ElementType type = ElementType::kFloat;
  ElementType parameter_type = ElementType::kFloat;
  ElementType statistics_type = ElementType::kFloat;
  std::size_t num_rows = 1;
  std::size_t norm_size = 1;
  Layout layout = Layout::kIdentity;
  bool use_affine = true;
  bool use_stats = true;
  bool wants_gamma_delta = true;
  bool wants_beta_delta = true;
  bool in_place = false;         // input_delta in the buffer of output_delta
  bool over_input = false;       // input_delta in the buffer of input_forward
  std::size_t misalignment = 0;  // in elements, of every buffer
  std::size_t odd_bytes = 0;     // by which no element begins where it should
  double mean = 0;               // of input_forward, before it is scaled
  double input_scale = 1;        // of input_forward; not of integers
  double delta_scale = 1;        // of output_delta; not of integers
  bool is_constant = false;      // every row of input_forward
  float epsilon = 1e-5f;
  const Variant* variant = &BestVariant();
  std::size_t cache_bytes = LastLevelCacheBytes();

  std::string Describe() const {
    const auto number = [](auto value) {
      return std::to_string(static_cast<long>(value)) + " ";
    };
    return "types " + number(type) + number(parameter_type) +
           number(statistics_type) + "rows " + number(num_rows) + "columns " +
           number(norm_size) + "layout " + number(layout) + "affine " +
           number(use_affine) + "stats " + number(use_stats) + "wants " +
           number(wants_gamma_delta) + number(wants_beta_delta) + "in place " +
           number(in_place) + number(over_input) + "misalignment " +
           number(misalignment) + number(odd_bytes) + "variant " +
           variant->name + " " + "cache " + number(cache_bytes) + "constant " +
           number(is_constant) + "mean " + std::to_string(mean) + " scales " +
           std::to_string(std::log10(input_scale)) + " " +
           std::to_string(std::log10(delta_scale)) + " epsilon " +
           std::to_string(epsilon) + " ";
  }
};

// A tensor with a guard on both sides.
class Buffer {
 public:
  Buffer(ElementType type, std::size_t size, const Problem& problem)
      : type_(type),
        size_(size),
        begin_(64 + problem.misalignment * SizeOf(type) + problem.odd_bytes),
        bytes_(begin_ + size * SizeOf(type) + 64 + kAlign, kGuard) {
    const auto address = reinterpret_cast<std::uintptr_t>(bytes_.data());
    begin_ += (kAlign - address % kAlign) % kAlign;
  }

  void* data() { return bytes_.data() + begin_; }
  const void* data() const { return bytes_.data() + begin_; }
  std::size_t size() const { return size_; }

  void Set(std::size_t i, double value) {
    WithElementType(type_, [=](auto tag) {
      using T = typename decltype(tag)::Type;
      StoreElement(data(), i,
                   FromCompute<T>(static_cast<ComputeType<T>>(value)));
    });
  }

  long double Get(std::size_t i) const {
    return WithElementType(type_, [=](auto tag) {
      using T = typename decltype(tag)::Type;
      const T element = LoadElement<T>(data(), i);
      if constexpr (std::is_class_v<T>) {
        return static_cast<long double>(ToFloat(element));
      } else {
        return static_cast<long double>(element);
      }
    });
  }

  Reals GetAll() const {
    Reals values(size_);
    for (std::size_t i = 0; i < size_; ++i) values[i] = Get(i);
    return values;
  }

  bool IsGuardIntact() const {
    const std::size_t end = begin_ + size_ * SizeOf(type_);
    for (std::size_t i = 0; i < bytes_.size(); ++i) {
      if ((i < begin_ || i >= end) && bytes_[i] != kGuard) return false;
    }
    return true;
  }

  bool IsUntouched() const {
    return std::all_of(bytes_.begin(), bytes_.end(),
                       [](unsigned char byte) { return byte == kGuard; });
  }

  bool operator==(const Buffer& other) const {
    return size_ == other.size_ &&
           (size_ == 0 ||
            std::memcmp(data(), other.data(), size_ * SizeOf(type_)) == 0);
  }

 private:
  static constexpr unsigned char kGuard = 0xa5;
  static constexpr std::size_t kAlign = 64;

  ElementType type_;
  std::size_t size_;
  std::size_t begin_;
  std::vector<unsigned char> bytes_;
};

inline bool IsInteger(ElementType type) {
  return WithElementType(type, [](auto tag) {
    return std::is_integral_v<typename decltype(tag)::Type>;
  });
}

inline Broadcast BroadcastOf(Layout layout, std::size_t norm_size) {
  if (layout == Layout::kIdentity) return Broadcast(norm_size);
  Broadcast broadcast(1);
  if (layout == Layout::kScalar) {
    broadcast.AddAxis(norm_size, true);
  } else {
    broadcast.AddAxis(norm_size / 2, layout == Layout::kAlongLast);
    broadcast.AddAxis(2, layout == Layout::kAlongFirst);
  }
  return broadcast;
}

// The element of gamma that belongs to a column.
inline std::size_t ElementOf(Layout layout, std::size_t column) {
  switch (layout) {
    case Layout::kScalar:
      return 0;
    case Layout::kAlongFirst:
      return column / 2;
    case Layout::kAlongLast:
      return column % 2;
    case Layout::kIdentity:
      break;
  }
  return column;
}

struct Expected {
  Reals input_delta;
  Reals gamma_delta;
  Reals beta_delta;
  long double input_delta_scale = 0;  // rms of rstd * g
  long double largest_row_scale = 0;  // the same of the row that has most
  long double gamma_delta_scale = 0;  // rms of what the sums would be unsigned
  long double beta_delta_scale = 0;
};

class Data {
 public:
  explicit Data(const Problem& problem, unsigned seed = 1)
      : problem_(problem),
        broadcast_(BroadcastOf(problem.layout, problem.norm_size)),
        input_forward(problem.type, size(), problem),
        output_delta(problem.type, size(), problem),
        gamma(problem.parameter_type, broadcast_.size(), problem),
        mean(problem.statistics_type, problem.num_rows, problem),
        variance(problem.statistics_type, problem.num_rows, problem) {
    std::mt19937 random(seed);
    std::normal_distribution<double> normal;
    const auto fill = [&](Buffer& buffer, ElementType type,
                          double integer_range, double offset, double scale,
                          std::size_t repeats) {
      double value = 0;
      for (std::size_t i = 0; i < buffer.size(); ++i) {
        if (i % repeats == 0) value = normal(random);
        buffer.Set(
            i, IsInteger(type)
                   ? std::floor(std::min(std::abs(value), 2.0) * integer_range)
                   : (value + offset) * scale);
      }
    };
    fill(input_forward, problem.type, 10, problem.mean, problem.input_scale,
         problem.is_constant ? problem.norm_size : 1);
    fill(output_delta, problem.type, 3, 0, problem.delta_scale, 1);
    fill(gamma, problem.parameter_type, 3, 1, 1, 1);
    for (std::size_t row = 0; row < problem.num_rows; ++row) {
      long double sum = 0;
      long double squares = 0;
      for (std::size_t i = 0; i < problem.norm_size; ++i) sum += X(row, i);
      const long double m = sum / static_cast<long double>(problem.norm_size);
      for (std::size_t i = 0; i < problem.norm_size; ++i) {
        squares += (X(row, i) - m) * (X(row, i) - m);
      }
      const bool is_integer = IsInteger(problem.statistics_type);
      mean.Set(row, static_cast<double>(is_integer ? std::round(m) : m));
      const long double v =
          squares / static_cast<long double>(problem.norm_size) + 0.1L;
      variance.Set(row, static_cast<double>(is_integer ? std::ceil(v) : v));
    }
  }

  std::size_t size() const { return problem_.num_rows * problem_.norm_size; }
  const Broadcast& broadcast() const { return broadcast_; }

  Expected Compute() const {
    const std::size_t columns = problem_.norm_size;
    const auto n = static_cast<long double>(columns);
    Expected expected;
    expected.input_delta.resize(size());
    expected.gamma_delta.resize(broadcast_.size());
    expected.beta_delta.resize(broadcast_.size());
    Reals gamma_squares(broadcast_.size());
    Reals beta_squares(broadcast_.size());
    Reals xhat(columns);
    Reals g(columns);
    Reals scaled_squares(columns);
    long double g_squares = 0;
    for (std::size_t row = 0; row < problem_.num_rows; ++row) {
      long double m = mean.Get(row);
      long double v = variance.Get(row);
      // What m lost to rounding: all there is of a constant row, and with a
      // large mean more than the tolerance of double.
      long double rest = 0;
      if (!problem_.use_stats) {
        m = v = 0;
        for (std::size_t i = 0; i < columns; ++i) m += X(row, i) / n;
        for (std::size_t i = 0; i < columns; ++i) rest += (X(row, i) - m) / n;
        for (std::size_t i = 0; i < columns; ++i) {
          const long double d = X(row, i) - m - rest;
          v += d * d / n;
        }
      }
      const long double rstd =
          1 / std::sqrt(v + static_cast<long double>(problem_.epsilon));
      long double mean_g = 0;
      long double mean_products = 0;
      for (std::size_t i = 0; i < columns; ++i) {
        const std::size_t element = ElementOf(problem_.layout, i);
        const long double delta = output_delta.Get(row * columns + i);
        xhat[i] = (X(row, i) - m - rest) * rstd;
        g[i] = problem_.use_affine ? delta * gamma.Get(element) : delta;
        mean_g += g[i] / n;
        mean_products += g[i] * xhat[i] / n;
        scaled_squares[i] = rstd * g[i] * rstd * g[i];
        g_squares += scaled_squares[i];
        expected.gamma_delta[element] += delta * xhat[i];
        expected.beta_delta[element] += delta;
        gamma_squares[element] += delta * xhat[i] * delta * xhat[i];
        beta_squares[element] += delta * delta;
      }
      expected.largest_row_scale =
          std::max(expected.largest_row_scale, RootMean(scaled_squares));
      for (std::size_t i = 0; i < columns; ++i) {
        expected.input_delta[row * columns + i] =
            rstd * (g[i] - mean_g - xhat[i] * mean_products);
      }
    }
    expected.input_delta_scale =
        std::sqrt(g_squares / static_cast<long double>(size()));
    expected.gamma_delta_scale = RootMean(gamma_squares);
    expected.beta_delta_scale = RootMean(beta_squares);
    return expected;
  }

 private:
  long double X(std::size_t row, std::size_t column) const {
    return input_forward.Get(row * problem_.norm_size + column);
  }

  static long double RootMean(const Reals& squares) {
    long double sum = 0;
    for (const long double square : squares) sum += square;
    return std::sqrt(sum / static_cast<long double>(squares.size()));
  }

  Problem problem_;
  Broadcast broadcast_;

 public:
  Buffer input_forward;
  Buffer output_delta;
  Buffer gamma;
  Buffer mean;
  Buffer variance;
};

struct Outputs {
  Buffer input_delta;
  Buffer gamma_delta;
  Buffer beta_delta;
  KernelResult result;
};

inline Outputs RunKernel(const Problem& problem, const Data& data,
                         ThreadPool& pool) {
  Outputs outputs{
      problem.in_place     ? data.output_delta
      : problem.over_input ? data.input_forward
                           : Buffer(problem.type, data.size(), problem),
      Buffer(problem.parameter_type, data.broadcast().size(), problem),
      Buffer(problem.parameter_type, data.broadcast().size(), problem),
      KernelResult::kOk};
  Arguments arguments;
  arguments.variant = problem.variant;
  arguments.cache_bytes = problem.cache_bytes;
  arguments.type = problem.type;
  arguments.parameter_type = problem.parameter_type;
  arguments.statistics_type = problem.statistics_type;
  arguments.num_rows = problem.num_rows;
  arguments.norm_size = problem.norm_size;
  arguments.epsilon = problem.epsilon;
  arguments.input_forward = problem.over_input ? outputs.input_delta.data()
                                               : data.input_forward.data();
  arguments.output_delta =
      problem.in_place ? outputs.input_delta.data() : data.output_delta.data();
  if (problem.use_affine) arguments.gamma = data.gamma.data();
  if (problem.use_stats) {
    arguments.mean = data.mean.data();
    arguments.variance = data.variance.data();
  }
  arguments.input_delta = outputs.input_delta.data();
  if (problem.wants_gamma_delta) {
    arguments.gamma_delta = outputs.gamma_delta.data();
  }
  if (problem.wants_beta_delta) {
    arguments.beta_delta = outputs.beta_delta.data();
  }
  arguments.gamma_broadcast = data.broadcast();
  arguments.beta_broadcast = data.broadcast();
  outputs.result = LayerNormBackprop(arguments, pool);
  return outputs;
}

}  // namespace lnbp::test

#endif  // LNBP_ONNX_TESTS_PROBLEM_H_
