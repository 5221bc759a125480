// SPDX-License-Identifier: Apache-2.0
//
// RowFunctions of a variant, made of its Steps. These do what the functions of
// the same names do, for kRows rows from `row` on:
//
//     SumInput<kRows>(tile, row, mean, sums), sums[r] being that of row + r
//     SumProducts<kRows>(tile, row, values, sums)
//     Apply<kRows>(tile, row, values, stage)
//
// kRows is 1, and up to Steps::kRowsAtOnce also 2 and 4. Where
// Steps::kSumsAhead there is also
//
//     ApplyAndSum(tile, row, row_to_sum, values, stage, sums)
//
// which is Apply<1> of `row` and SumProducts<1> of `row_to_sum`. The
// Steps::Stage is the same for all rows of a call.

#ifndef LNBP_ONNX_ROW_STEPS_H_
#define LNBP_ONNX_ROW_STEPS_H_

#include <cstddef>
#include <type_traits>

#include "inline.h"
#include "row_functions.h"
#include "row_values.h"

namespace lnbp {

template <typename T, typename C, typename Steps>
class RowFunctionsOf {
 public:
  static constexpr RowFunctions<C> Table() {
    return {WholeRows, SumInput, SumProducts, Apply, Fold, Steps::FinishStores};
  }

 private:
  template <std::size_t kRows>
  using Rows = std::integral_constant<std::size_t, kRows>;

  // Calls function(Rows<n>, row) for all rows, n at a time.
  template <typename Function>
  static LNBP_INLINE void ForRows(std::size_t begin, std::size_t end,
                                  Function function) {
    std::size_t row = begin;
    if constexpr (Steps::kRowsAtOnce >= 4) {
      for (; row + 4 <= end; row += 4) function(Rows<4>{}, row);
    }
    if constexpr (Steps::kRowsAtOnce >= 2) {
      for (; row + 2 <= end; row += 2) function(Rows<2>{}, row);
    }
    for (; row < end; ++row) function(Rows<1>{}, row);
  }

  static void WholeRows(const Tile<C>& tile, std::size_t num_rows,
                        std::size_t group_rows, RowMeans means,
                        RowValues<C>& values) {
    if (!values.has_residual) means.SetRstd(num_rows, values);
    typename Steps::Stage stage;
    if constexpr (Steps::kSumsAhead) {
      if (tile.rows_summed_ahead != 0) {
        return SumAhead(tile, num_rows, means, values, stage);
      }
    }
    for (std::size_t begin = 0; begin < num_rows; begin += group_rows) {
      const std::size_t rest = num_rows - begin;
      const std::size_t end = begin + (rest < group_rows ? rest : group_rows);
      SetValues(tile, begin, end, means, values);
      ForRows(begin, end, [&](auto rows, std::size_t row) LNBP_INLINE_LAMBDA {
        Steps::template Apply<rows>(tile, row, values, stage);
      });
    }
  }

  // The sums of a row are made while input_delta is written for one before.
  static LNBP_INLINE void SumAhead(const Tile<C>& tile, std::size_t num_rows,
                                   RowMeans means, RowValues<C>& values,
                                   typename Steps::Stage& stage) {
    const std::size_t distance =
        tile.rows_summed_ahead < num_rows ? tile.rows_summed_ahead : num_rows;
    SetValues(tile, 0, distance, means, values);
    for (std::size_t row = distance; row < num_rows; ++row) {
      if (values.has_residual) SetFirstMeans<1>(tile, row, means, values);
      const auto sum = [=, &values,
                        &stage](const Tile<C>& columns) LNBP_INLINE_LAMBDA {
        RowSums<1> sums;
        Steps::ApplyAndSum(columns, row - distance, row, values, stage, sums);
        return sums;
      };
      RowSums<1> sums = sum(FirstColumns(tile));
      if (tile.num_columns > kMaxTileColumns) {
        AddFurtherColumns(tile, sum, sums);
      }
      SetFactors(tile, row, 1, means, sums, values);
    }
    ForRows(num_rows - distance, num_rows,
            [&](auto rows, std::size_t row) LNBP_INLINE_LAMBDA {
              Steps::template Apply<rows>(tile, row, values, stage);
            });
  }

  // All rows a step further before the next step, since each waits for the one
  // before.
  static LNBP_INLINE void SetValues(const Tile<C>& tile, std::size_t begin,
                                    std::size_t end, RowMeans means,
                                    RowValues<C>& values) {
    if (values.has_residual) {
      ForRows(begin, end, [&](auto rows, std::size_t row) LNBP_INLINE_LAMBDA {
        SetFirstMeans<rows>(tile, row, means, values);
      });
    }
    TileSums sums;
    SumRows(tile, begin, end, values, sums);
    SetFactors(tile, begin, end - begin, means, sums, values);
  }

  static LNBP_INLINE void SumRows(const Tile<C>& tile, std::size_t begin,
                                  std::size_t end, const RowValues<C>& values,
                                  TileSums& sums) {
    SumProductsOf(FirstColumns(tile), begin, end, values, sums);
    ForFurtherColumns(tile, [&](const Tile<C>& columns) LNBP_INLINE_LAMBDA {
      TileSums more{};
      SumProductsOf(columns, begin, end, values, more);
      sums.Add(more, end - begin);
    });
  }

  // Like what follows not inlined: that costs nothing here, and halves the time
  // to compile.
  static void SumProductsOf(const Tile<C>& tile, std::size_t begin,
                            std::size_t end, const RowValues<C>& values,
                            TileSums& sums) {
    const auto sum = [&](auto rows, std::size_t row) LNBP_INLINE_LAMBDA {
      RowSums<rows> some;
      Steps::template SumProducts<rows>(tile, row, values, some);
      sums.Set(some, row - begin);
    };
    // Two rows are better summed one after the other, but not long ones, which
    // are not asked for ahead.
    if (end - begin == 2 && tile.rows_ahead != 0) {
      for (std::size_t row = begin; row < end; ++row) sum(Rows<1>{}, row);
    } else {
      ForRows(begin, end, sum);
    }
  }

  // `sum` makes the sums of a row over the columns of a tile.
  template <typename Sum>
  static void AddFurtherColumns(const Tile<C>& tile, Sum sum,
                                RowSums<1>& sums) {
    ForFurtherColumns(tile, [&](const Tile<C>& columns)
                                LNBP_INLINE_LAMBDA { sums.Add(sum(columns)); });
  }

  // From the sums of `num_rows` rows from `begin` on, after first means.
  template <std::size_t kRows>
  static LNBP_INLINE void SetFactors(const Tile<C>& tile, std::size_t begin,
                                     std::size_t num_rows, RowMeans means,
                                     const RowSums<kRows>& sums,
                                     RowValues<C>& values) {
    means.SetFactors(sums, begin, true, values, num_rows);
    if (!values.has_residual) return;
    for (std::size_t r = 0; r < num_rows; ++r) {
      if (!means.AreExact(sums, r, begin + r, values)) {
        SetExactValues(tile, begin + r, means, values);
      }
    }
  }

  template <std::size_t kRows>
  static LNBP_INLINE void SetFirstMeans(Tile<C> tile, std::size_t row,
                                        RowMeans means, RowValues<C>& values) {
    double inverse_count = means.inverse_norm_size;
    if (tile.num_columns >= kFirstMeanColumns) {
      tile.num_columns = kFirstMeanColumns;
      inverse_count = 1.0 / kFirstMeanColumns;
    }
    for (std::size_t r = 0; r < kRows; ++r) values.mean[row + r] = 0;
    double sums[kRows];
    Steps::template SumInput<kRows>(tile, row, values.mean, sums);
    for (std::size_t r = 0; r < kRows; ++r) {
      means.SetFirstMean(sums[r] * inverse_count, row + r, values);
    }
  }

  // From the mean, exact but for what is left in the residual.
  static void SetExactValues(const Tile<C>& tile, std::size_t row,
                             RowMeans means, RowValues<C>& values) {
    values.mean[row] = 0;
    SetMean(tile, row, means, values.mean, values.mean);
    SetMean(tile, row, means, values.mean, values.residual);
    TileSums sums{};
    SumRows(tile, row, row + 1, values, sums);
    means.SetFactors(sums, row, false, values, 1);
  }

  // From the mean of x - `from`.
  static void SetMean(const Tile<C>& tile, std::size_t row, RowMeans means,
                      const C* from, C* mean) {
    double sum;
    Steps::template SumInput<1>(FirstColumns(tile), row, from, &sum);
    ForFurtherColumns(tile, [&](const Tile<C>& columns) LNBP_INLINE_LAMBDA {
      double more;
      Steps::template SumInput<1>(columns, row, from, &more);
      sum += more;
    });
    mean[row] = means.Mean<C>(sum);
  }

  static LNBP_INLINE Tile<C> FirstColumns(Tile<C> tile) {
    if (tile.num_columns > kMaxTileColumns) tile.num_columns = kMaxTileColumns;
    return tile;
  }

  template <typename Function>
  static LNBP_INLINE void ForFurtherColumns(const Tile<C>& tile,
                                            Function function) {
    for (std::size_t begin = kMaxTileColumns; begin < tile.num_columns;
         begin += kMaxTileColumns) {
      Tile<C> columns = tile;
      columns.input_forward = static_cast<const T*>(tile.input_forward) + begin;
      columns.output_delta = static_cast<const T*>(tile.output_delta) + begin;
      columns.gamma += begin;
      columns.num_columns -= begin;
      columns.input_delta = static_cast<T*>(tile.input_delta) + begin;
      columns.gamma_sums += begin;
      columns.beta_sums += begin;
      function(FirstColumns(columns));
    }
  }

  static void SumInput(const Tile<C>& tile, std::size_t num_rows, const C* mean,
                       double* sums) {
    ForRows(0, num_rows, [&](auto rows, std::size_t row) LNBP_INLINE_LAMBDA {
      Steps::template SumInput<rows>(tile, row, mean, sums + row);
    });
  }

  static void SumProducts(const Tile<C>& tile, std::size_t num_rows,
                          const RowValues<C>& values, TileSums& sums) {
    SumProductsOf(tile, 0, num_rows, values, sums);
  }

  static void Apply(const Tile<C>& tile, std::size_t num_rows,
                    const RowValues<C>& values) {
    typename Steps::Stage stage;
    ForRows(0, num_rows, [&](auto rows, std::size_t row) LNBP_INLINE_LAMBDA {
      Steps::template Apply<rows>(tile, row, values, stage);
    });
  }

  static void Fold(const C* sums, std::size_t count, double* totals) {
    for (std::size_t i = 0; i < count; ++i) {
      totals[i] += static_cast<double>(sums[i]);
    }
  }
};

}  // namespace lnbp

#endif  // LNBP_ONNX_ROW_STEPS_H_
