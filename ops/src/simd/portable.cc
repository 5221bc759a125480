// SPDX-License-Identifier: Apache-2.0
//
// The variant in standard C++, in loops that a compiler can vectorise.
//
// Elements pass through small arrays. That tells the compiler that no store to
// input_delta changes what it reads, though the buffers may be one.

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <type_traits>

#include "converted_steps.h"
#include "element_types.h"
#include "function_tables.h"
#include "row_functions.h"
#include "row_steps.h"
#include "row_values.h"

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

// Of a row's elements those from `begin` on.
template <typename C>
void Load(const void* row, std::size_t begin, std::size_t count, C* to) {
  std::memcpy(to, static_cast<const unsigned char*>(row) + begin * sizeof(C),
              count * sizeof(C));
}

template <typename C>
void LoadCentred(const void* row, std::size_t begin, std::size_t count, C mean,
                 C* to) {
  for (std::size_t i = 0; i < count; ++i) {
    to[i] = LoadElement<C>(row, begin + i) - mean;
  }
}

template <typename C>
void MultiplyBy(const C* factors, std::size_t count, C* values) {
  for (std::size_t i = 0; i < count; ++i) values[i] *= factors[i];
}

// For elements of the compute type.
template <typename C>
struct PortableSteps {
  static constexpr std::size_t kRowsAtOnce = 1;
  static constexpr bool kSumsAhead = false;
  // C++ has no name for stores past the cache, nor for prefetching.
  struct Stage {
    static void* At(void* to) { return to; }
    static void Add(std::size_t) {}
  };
  template <std::size_t>
  using StageOf = Stage;

  template <std::size_t kRows>
  static void SumInput(const Tile<C>& tile, std::size_t row, const C* mean,
                       double* sums) {
    static_assert(kRows == 1);
    C d[kStage];
    const void* x = At(tile.input_forward, tile, row);
    LaneSum<C> sum;
    for (std::size_t i = 0; i < tile.num_columns; i += kStage) {
      const std::size_t count = std::min(kStage, tile.num_columns - i);
      LoadCentred(x, i, count, mean[row], d);
      sum.Add(d, count);
    }
    sums[0] = sum.Total();
  }

  template <std::size_t kRows>
  static void SumProducts(const Tile<C>& tile, std::size_t row,
                          const RowValues<C>& values, RowSums<kRows>& sums) {
    static_assert(kRows == 1);
    C d[kStage];
    C g[kStage];
    const void* x = At(tile.input_forward, tile, row);
    const void* dy = At(tile.output_delta, tile, row);
    LaneSum<C> g_sum;
    LaneSum<C> products;
    LaneSum<C> centred;
    LaneSum<C> squares;
    for (std::size_t i = 0; i < tile.num_columns; i += kStage) {
      const std::size_t count = std::min(kStage, tile.num_columns - i);
      LoadCentred(x, i, count, values.mean[row], d);
      if (values.has_residual) {
        centred.Add(d, count);
        for (std::size_t j = 0; j < count; ++j) d[j] -= values.residual[row];
      }
      Load(dy, i, count, g);
      MultiplyBy(tile.gamma + i, count, g);
      g_sum.Add(g, count);
      products.AddProducts(g, d, count);
      if (values.has_residual) squares.AddProducts(d, d, count);
    }
    sums = {{g_sum.Total()},
            {products.Total()},
            {centred.Total()},
            {squares.Total()}};
  }

  template <std::size_t kRows>
  static void Apply(const Tile<C>& tile, std::size_t row,
                    const RowValues<C>& values, Stage&) {
    static_assert(kRows == 1);
    C xhat[kStage];
    C g[kStage];
    const void* x = At(tile.input_forward, tile, row);
    const void* dy = At(tile.output_delta, tile, row);
    void* dx = static_cast<unsigned char*>(tile.input_delta) +
               row * tile.row_stride * sizeof(C);
    const C mean = values.mean[row];
    const C rstd = values.rstd[row];
    const C shift = values.shift[row];
    const C slope = values.slope[row];
    const C offset = values.offset[row];
    for (std::size_t i = 0; i < tile.num_columns; i += kStage) {
      const std::size_t count = std::min(kStage, tile.num_columns - i);
      Load(x, i, count, xhat);
      for (std::size_t j = 0; j < count; ++j) {
        xhat[j] = (xhat[j] - mean) * rstd + shift;
      }
      Load(dy, i, count, g);
      for (std::size_t j = 0; j < count; ++j) {
        tile.gamma_sums[i + j] += g[j] * xhat[j];
      }
      for (std::size_t j = 0; j < count; ++j) tile.beta_sums[i + j] += g[j];
      MultiplyBy(tile.gamma + i, count, g);
      for (std::size_t j = 0; j < count; ++j) {
        StoreElement(dx, i + j, g[j] * rstd + (xhat[j] * slope + offset));
      }
    }
  }

  static void Prefetch(const void*) {}
  static void FinishStores() {}

  static const void* At(const void* tensor, const Tile<C>& tile,
                        std::size_t row) {
    return static_cast<const unsigned char*>(tensor) +
           row * tile.row_stride * sizeof(C);
  }
};

template <typename T, typename C = ComputeType<T>>
using PortableFunctionsOf =
    std::conditional_t<std::is_same_v<T, C>,
                       RowFunctionsOf<C, C, PortableSteps<C>>,
                       ConvertedFunctionsOf<T, PortableSteps<C>>>;

template <typename T>
constexpr RowFunctions<ComputeType<T>> kFunctions =
    PortableFunctionsOf<T>::Table();

}  // namespace

constexpr FunctionTable kPortableFunctions = [] {
  FunctionTable table;
  for (const ElementType type : kElementTypes) {
    WithElementType(type, [&table, type](auto tag) {
      table.Add(type, &kFunctions<typename decltype(tag)::Type>);
    });
  }
  return table;
}();

}  // namespace lnbp
