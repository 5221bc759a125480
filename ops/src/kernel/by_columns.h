// SPDX-License-Identifier: Apache-2.0

#ifndef LNBP_ONNX_BY_COLUMNS_H_
#define LNBP_ONNX_BY_COLUMNS_H_

#include <algorithm>
#include <cstddef>

#include "operands.h"
#include "row_functions.h"
#include "row_values.h"
#include "scratch.h"
#include "thread_pool.h"

namespace lnbp {

// For few and long rows, at most kMaxTileRows: each task has a tile of columns
// of all rows. The sums of the rows take a pass of their own, the parameter
// gradients none.
template <typename C>
class ByColumns {
 public:
  ByColumns(const Operands<C>& operands, Scratch& scratch)
      : operands_(operands),
        num_rows_(operands.num_rows),
        num_tiles_(operands.plan.num_tiles),
        input_sums_(scratch.Add<double>(num_rows_, num_tiles_)),
        tile_sums_(scratch.Add<TileSums>(num_tiles_)) {}

  // False: the pool failed.
  bool Run(ThreadPool& pool) const {
    RowValues<C> values;
    operands_.LoadStatistics(0, num_rows_, values);
    if (operands_.has_statistics()) {
      operands_.means.SetRstd(num_rows_, values);
    } else {
      SetFirstMeans(values);
    }
    return SetFactors(pool, values) &&
           ParallelFor(pool, num_tiles_,
                       [this, &values](std::size_t tile) noexcept {
                         Apply(tile, values);
                       });
  }

 private:
  void SetFirstMeans(RowValues<C>& values) const {
    std::fill_n(values.mean, num_rows_, C{0});
    const Tile<C> columns =
        operands_.TileAt(0, 0, kFirstMeanColumns, nullptr, nullptr);
    double* const sums = input_sums_.get();
    operands_.functions.sum_input(columns, num_rows_, values.mean, sums);
    for (std::size_t row = 0; row < num_rows_; ++row) {
      operands_.means.SetFirstMean(sums[row] / kFirstMeanColumns, row, values);
    }
  }

  // From the mean of x - `from`.
  bool SetMean(ThreadPool& pool, const C* from, C* mean) const {
    double* const sums = input_sums_.get();
    if (!ParallelFor(
            pool, num_tiles_, [this, from, sums](std::size_t tile) noexcept {
              operands_.functions.sum_input(TileAt(tile, nullptr, nullptr),
                                            num_rows_, from,
                                            sums + tile * num_rows_);
            })) {
      return false;
    }
    for (std::size_t tile = 1; tile < num_tiles_; ++tile) {
      for (std::size_t row = 0; row < num_rows_; ++row) {
        sums[row] += sums[tile * num_rows_ + row];
      }
    }
    for (std::size_t row = 0; row < num_rows_; ++row) {
      mean[row] = operands_.means.template Mean<C>(sums[row]);
    }
    return true;
  }

  bool SetFactors(ThreadPool& pool, RowValues<C>& values) const {
    if (!SumProducts(pool, values)) return false;
    const RowMeans& means = operands_.means;
    TileSums& sums = *tile_sums_.get();
    means.SetFactors(sums, 0, true, values, num_rows_);
    if (operands_.has_statistics()) return true;
    bool are_exact[kMaxTileRows];
    for (std::size_t row = 0; row < num_rows_; ++row) {
      are_exact[row] = means.AreExact(sums, row, row, values);
    }
    if (std::all_of(are_exact, are_exact + num_rows_,
                    [](bool is_exact) { return is_exact; })) {
      return true;
    }
    const RowValues<C> first = values;
    std::fill_n(values.mean, num_rows_, C{0});
    if (!SetMean(pool, values.mean, values.mean) ||
        !SetMean(pool, values.mean, values.residual) ||
        !SumProducts(pool, values)) {
      return false;
    }
    means.SetFactors(sums, 0, false, values, num_rows_);
    for (std::size_t row = 0; row < num_rows_; ++row) {
      if (are_exact[row]) values.CopyRow(first, row);
    }
    return true;
  }

  // Into the sums of the first tile.
  bool SumProducts(ThreadPool& pool, const RowValues<C>& values) const {
    TileSums* const sums = tile_sums_.get();
    if (!ParallelFor(
            pool, num_tiles_, [this, &values, sums](std::size_t tile) noexcept {
              operands_.functions.sum_products(TileAt(tile, nullptr, nullptr),
                                               num_rows_, values, sums[tile]);
            })) {
      return false;
    }
    for (std::size_t tile = 1; tile < num_tiles_; ++tile) {
      sums[0].Add(sums[tile], num_rows_);
    }
    return true;
  }

  void Apply(std::size_t tile, const RowValues<C>& values) const {
    C sums[2][kMaxTileColumns + kColumnsBeyond] = {};
    const Tile<C> columns = TileAt(tile, sums[0], sums[1]);
    operands_.functions.apply(columns, num_rows_, values);
    if (operands_.past_cache) operands_.functions.finish_stores();
    for (std::size_t i = 0; i < 2; ++i) {
      if (!operands_.gradients[i].is_wanted()) continue;
      // -0 becomes 0 everywhere: see kColumnsBeyond.
      for (C& sum : sums[i]) sum += C{0};
      operands_.gradients[i].StoreColumns(sums[i], tile * kMaxTileColumns,
                                          columns.num_columns);
    }
  }

  Tile<C> TileAt(std::size_t tile, C* gamma_sums, C* beta_sums) const {
    const std::size_t column = tile * kMaxTileColumns;
    return operands_.TileAt(
        0, column, std::min(kMaxTileColumns, operands_.norm_size - column),
        gamma_sums, beta_sums);
  }

  const Operands<C>& operands_;
  const std::size_t num_rows_;
  const std::size_t num_tiles_;
  // Of each tile, the sums of each row.
  Scratch::Piece<double> input_sums_;
  Scratch::Piece<TileSums> tile_sums_;
};

}  // namespace lnbp

#endif  // LNBP_ONNX_BY_COLUMNS_H_
