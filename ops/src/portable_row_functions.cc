// SPDX-License-Identifier: Apache-2.0
//
// Elements pass through small arrays of the compute type. That keeps the
// conversions in loops of their own, and tells the compiler that no store to
// input_delta changes what it reads, though the buffers may be one.

#include "portable_row_functions.h"

#include <algorithm>
#include <cstddef>
#include <type_traits>

namespace lnbp {
namespace {

constexpr std::size_t kStage = 128;
// Independent running sums, so that additions need not wait for each other.
constexpr std::size_t kLanes = 16;
static_assert(kStage % kLanes == 0);

template <typename C>
class LaneSum {
 public:
  void Add(const C* values, std::size_t count) {
    std::size_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
      for (std::size_t lane = 0; lane < kLanes; ++lane) {
        lanes_[lane] += values[i + lane];
      }
    }
    for (std::size_t lane = 0; i + lane < count; ++lane) {
      lanes_[lane] += values[i + lane];
    }
  }

  void AddProducts(const C* a, const C* b, std::size_t count) {
    std::size_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
      for (std::size_t lane = 0; lane < kLanes; ++lane) {
        lanes_[lane] += a[i + lane] * b[i + lane];
      }
    }
    for (std::size_t lane = 0; i + lane < count; ++lane) {
      lanes_[lane] += a[i + lane] * b[i + lane];
    }
  }

  double Total() const {
    double total = 0;
    for (const C lane : lanes_) total += static_cast<double>(lane);
    return total;
  }

 private:
  C lanes_[kLanes] = {};
};

template <typename C, typename T>
void Load(const T* from, std::size_t count, C* to) {
  for (std::size_t i = 0; i < count; ++i) to[i] = ToCompute<C>(from[i]);
}

template <typename C, typename T>
void LoadCentred(const T* from, std::size_t count, C mean, C residual, C scale,
                 C* to) {
  for (std::size_t i = 0; i < count; ++i) {
    to[i] = ((ToCompute<C>(from[i]) - mean) - residual) * scale;
  }
}

template <typename C>
void MultiplyBy(const C* factors, std::size_t count, C* values) {
  for (std::size_t i = 0; i < count; ++i) values[i] *= factors[i];
}

template <typename T>
struct Portable {
  using C = ComputeType<T>;

  static void SumInput(const Tile& tile, const C* means, double* sums) {
    C d[kStage];
    for (std::size_t row = 0; row < tile.num_rows; ++row) {
      const T* input_forward =
          static_cast<const T*>(tile.input_forward) + row * tile.row_stride;
      LaneSum<C> sum;
      for (std::size_t i = 0; i < tile.num_columns; i += kStage) {
        const std::size_t count = std::min(kStage, tile.num_columns - i);
        LoadCentred(input_forward + i, count, means[row], C{0}, C{1}, d);
        sum.Add(d, count);
      }
      sums[row] = sum.Total();
    }
  }

  static void SumProducts(const Tile& tile, const Centre<C>* centres,
                          const C* gamma, bool has_statistics, RowSums* sums) {
    C d[kStage];
    C g[kStage];
    for (std::size_t row = 0; row < tile.num_rows; ++row) {
      const T* input_forward =
          static_cast<const T*>(tile.input_forward) + row * tile.row_stride;
      const T* output_delta =
          static_cast<const T*>(tile.output_delta) + row * tile.row_stride;
      const Centre<C> centre = centres[row];
      LaneSum<C> squares;
      LaneSum<C> g_sum;
      LaneSum<C> products;
      for (std::size_t i = 0; i < tile.num_columns; i += kStage) {
        const std::size_t count = std::min(kStage, tile.num_columns - i);
        LoadCentred(input_forward + i, count, centre.mean, centre.residual,
                    centre.scale, d);
        Load(output_delta + i, count, g);
        MultiplyBy(gamma + i, count, g);
        if (!has_statistics) squares.AddProducts(d, d, count);
        g_sum.Add(g, count);
        products.AddProducts(g, d, count);
      }
      sums[row] = {squares.Total(), g_sum.Total(), products.Total()};
    }
  }

  static void Apply(const Tile& tile, const RowFactors<C>* factors,
                    const C* gamma, bool, const Output<C>& to) {
    C xhat[kStage];
    C g[kStage];
    for (std::size_t row = 0; row < tile.num_rows; ++row) {
      const T* input_forward =
          static_cast<const T*>(tile.input_forward) + row * tile.row_stride;
      const T* output_delta =
          static_cast<const T*>(tile.output_delta) + row * tile.row_stride;
      T* result = static_cast<T*>(to.input_delta) + row * tile.row_stride;
      const RowFactors<C> factor = factors[row];
      for (std::size_t i = 0; i < tile.num_columns; i += kStage) {
        const std::size_t count = std::min(kStage, tile.num_columns - i);
        LoadCentred(input_forward + i, count, factor.mean, factor.residual,
                    factor.rstd, xhat);
        Load(output_delta + i, count, g);
        if (to.gamma_sums != nullptr) {
          for (std::size_t j = 0; j < count; ++j) {
            to.gamma_sums[i + j] += g[j] * xhat[j];
          }
          for (std::size_t j = 0; j < count; ++j) to.beta_sums[i + j] += g[j];
        }
        MultiplyBy(gamma + i, count, g);
        for (std::size_t j = 0; j < count; ++j) {
          // The two means first: they are small beside the largest g, and so
          // is the rounding of their sum.
          const C means = factor.mean_g + xhat[j] * factor.mean_products;
          result[i + j] = FromCompute<T>(factor.rstd * (g[j] - means));
        }
      }
    }
  }

  static constexpr RowFunctions<C> kFunctions = {SumInput, SumProducts, Apply};
};

}  // namespace

template <typename C>
const RowFunctions<C>& PortableRowFunctions(ElementType type) {
  const RowFunctions<C>* functions = nullptr;
  WithElementType(type, [&functions](auto* null) {
    using T = std::remove_pointer_t<decltype(null)>;
    if constexpr (std::is_same_v<ComputeType<T>, C>) {
      functions = &Portable<T>::kFunctions;
    }
  });
  return *functions;
}

template const RowFunctions<float>& PortableRowFunctions<float>(ElementType);
template const RowFunctions<double>& PortableRowFunctions<double>(ElementType);

}  // namespace lnbp
