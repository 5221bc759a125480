// SPDX-License-Identifier: Apache-2.0
//
// The loops over elements. A variant of the kernel, such as one for a SIMD
// instruction set, has these functions for each element type; variants.h lists
// the variants.

#ifndef LNBP_ONNX_ROW_FUNCTIONS_H_
#define LNBP_ONNX_ROW_FUNCTIONS_H_

#include <cstddef>
#include <type_traits>

#include "element_types.h"
#include "row_values.h"

namespace lnbp {

// No sum of the compute type runs over more columns than kMaxTileColumns, or
// over more rows than kMaxTileRows: longer sums are folded in double.
inline constexpr std::size_t kMaxTileColumns = 2048;

// Where the statistics are computed, sums are first tried from the mean of so
// many columns.
inline constexpr std::size_t kFirstMeanColumns = 32;

// The arrays of sums over rows go on for so many columns, for whole vectors to
// be read and written where rows end. There -0 may become 0, all else stays.
inline constexpr std::size_t kColumnsBeyond = 32;

// Where the lines of input_delta do not begin with its rows, rows of at most so
// many bytes go past the cache by way of a Stage, longer ones directly, but for
// their ends.
inline constexpr std::size_t kStagedRowBytes = 1024;

// A rectangle of the tensors, of at most kMaxTileRows rows. Each pointer points
// to its upper left element, or to its first column.
template <typename C>
struct Tile {
  const void* input_forward;
  const void* output_delta;
  const C* gamma;
  std::size_t row_stride;  // in elements
  std::size_t num_columns;
  // How many rows further on the rows lie that the memory is asked for early; 0
  // where that does not pay.
  std::size_t rows_ahead;
  // How many rows further on the rows lie that are summed while input_delta is
  // written; 0: a group is summed before any of it is written.
  std::size_t rows_summed_ahead;

  void* input_delta;  // may be input_forward or output_delta
  C* gamma_sums;    // of output_delta * xhat, over the rows; see kColumnsBeyond
  C* beta_sums;     // of output_delta
  bool past_cache;  // whether to keep input_delta out of the cache
};

using TileSums = RowSums<kMaxTileRows>;

template <typename C>
struct RowFunctions {
  // The gradient of whole rows, a group at a time: its sums and, while its
  // elements are in the cache, input_delta. Groups have at most `group_rows`
  // rows. Without residuals mean and variance are given.
  void (*whole_rows)(const Tile<C>& tile, std::size_t num_rows,
                     std::size_t group_rows, RowMeans means,
                     RowValues<C>& values);

  // The steps, for tiles of at most kMaxTileColumns columns.

  // sums[row] = sum of x - mean
  void (*sum_input)(const Tile<C>& tile, std::size_t num_rows, const C* mean,
                    double* sums);
  void (*sum_products)(const Tile<C>& tile, std::size_t num_rows,
                       const RowValues<C>& values, TileSums& sums);
  // Writes input_delta and adds to the sums over the rows.
  void (*apply)(const Tile<C>& tile, std::size_t num_rows,
                const RowValues<C>& values);

  // totals[i] += sums[i]
  void (*fold)(const C* sums, std::size_t count, double* totals);

  // To be called by the thread that made stores past the cache, before it says
  // that it is done.
  void (*finish_stores)();
};

// The functions of a variant, by element type.
class FunctionTable {
 public:
  constexpr void Add(ElementType type, const RowFunctions<float>* functions) {
    floats_[static_cast<std::size_t>(type)] = functions;
  }
  constexpr void Add(ElementType type, const RowFunctions<double>* functions) {
    doubles_[static_cast<std::size_t>(type)] = functions;
  }

  // Null for a type that the variant has none for. `C` is the type that `type`
  // is computed in.
  template <typename C>
  const RowFunctions<C>* Find(ElementType type) const {
    const auto number = static_cast<std::size_t>(type);
    if constexpr (std::is_same_v<C, double>) {
      return doubles_[number];
    } else {
      return floats_[number];
    }
  }

 private:
  static constexpr std::size_t kSize =
      static_cast<std::size_t>(ElementType::kBfloat16) + 1;

  const RowFunctions<float>* floats_[kSize] = {};
  const RowFunctions<double>* doubles_[kSize] = {};
};

}  // namespace lnbp

#endif  // LNBP_ONNX_ROW_FUNCTIONS_H_
