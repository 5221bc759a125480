// SPDX-License-Identifier: Apache-2.0

#ifndef LNBP_ONNX_BY_ROWS_H_
#define LNBP_ONNX_BY_ROWS_H_

#include <algorithm>
#include <cstddef>

#include "operands.h"
#include "parameter_gradient.h"
#include "plan.h"
#include "row_functions.h"
#include "row_values.h"
#include "scratch.h"
#include "thread_pool.h"

namespace lnbp {

// Each task has a block of whole rows, with sums of its own for the parameter
// gradients; they are folded when all blocks are done.
template <typename C>
class ByRows {
 public:
  ByRows(const Operands<C>& operands, Scratch& scratch)
      : operands_(operands), plan_(operands.plan) {
    for (std::size_t i = 0; i < 2; ++i) {
      sums_[i].tile =
          scratch.Add<C>(sums_size(), plan_.num_blocks, operands.past_line);
      if (gradient(i).is_wanted() && plan_.has_many_tiles()) {
        sums_[i].block = scratch.Add<double>(norm_size(), plan_.num_blocks);
      }
    }
  }

  // False: the pool failed.
  bool Run(ThreadPool& pool) const {
    if (!ParallelFor(pool, plan_.num_blocks,
                     [this](std::size_t block) noexcept { RunBlock(block); })) {
      return false;
    }
    if (!gradient(0).is_wanted() && !gradient(1).is_wanted()) return true;
    const std::size_t num_tasks =
        1 + plan_.num_blocks * norm_size() / kMinFoldElements;
    return ParallelFor(
        pool, num_tasks, [this, num_tasks](std::size_t task) noexcept {
          for (std::size_t begin = task * kFoldColumns; begin < norm_size();
               begin += num_tasks * kFoldColumns) {
            for (std::size_t i = 0; i < 2; ++i) {
              if (gradient(i).is_wanted()) FoldBlocks(i, begin);
            }
          }
        });
  }

 private:
  // Columns over which the sums of all blocks are added up at a time.
  static constexpr std::size_t kFoldColumns = 256;
  // What is worth handing to another thread.
  static constexpr std::size_t kMinFoldElements = std::size_t{16} * 1024;

  // Of each block, the sums over the rows of a tile, and over all its rows.
  struct Sums {
    Scratch::Piece<C> tile;
    Scratch::Piece<double> block;
  };

  std::size_t norm_size() const { return operands_.norm_size; }
  std::size_t sums_size() const { return norm_size() + kColumnsBeyond; }
  const ParameterGradient<C>& gradient(std::size_t i) const {
    return operands_.gradients[i];
  }
  C* TileSums(std::size_t i, std::size_t block) const {
    return sums_[i].tile.get() + block * sums_size();
  }
  double* BlockSums(std::size_t i, std::size_t block) const {
    return sums_[i].block.get() + block * norm_size();
  }

  void RunBlock(std::size_t block) const {
    const std::size_t begin = block * plan_.block_rows;
    const std::size_t end =
        std::min(begin + plan_.block_rows, operands_.num_rows);
    C* const gamma_sums = TileSums(0, block);
    C* const beta_sums = TileSums(1, block);
    RowValues<C> values;
    for (std::size_t row = begin; row < end; row += kMaxTileRows) {
      const std::size_t rows = std::min(kMaxTileRows, end - row);
      std::fill_n(gamma_sums, sums_size(), C{0});
      std::fill_n(beta_sums, sums_size(), C{0});
      operands_.LoadStatistics(row, rows, values);
      operands_.functions.whole_rows(
          operands_.TileAt(row, 0, norm_size(), gamma_sums, beta_sums), rows,
          plan_.group_rows, operands_.means, values);
      for (std::size_t i = 0; i < 2; ++i) {
        if (gradient(i).is_wanted() && plan_.has_many_tiles()) {
          FoldTile(i, block, row == begin);
        }
      }
    }
    if (operands_.past_cache) operands_.functions.finish_stores();
  }

  void FoldTile(std::size_t i, std::size_t block, bool is_first) const {
    double* const sums = BlockSums(i, block);
    if (is_first) std::fill_n(sums, norm_size(), 0.0);
    operands_.functions.fold(TileSums(i, block), norm_size(), sums);
  }

  void FoldBlocks(std::size_t i, std::size_t begin) const {
    const std::size_t count = std::min(kFoldColumns, norm_size() - begin);
    double totals[kFoldColumns] = {};
    for (std::size_t block = 0; block < plan_.num_blocks; ++block) {
      if (plan_.has_many_tiles()) {
        const double* const sums = BlockSums(i, block) + begin;
        for (std::size_t j = 0; j < count; ++j) totals[j] += sums[j];
      } else {
        operands_.functions.fold(TileSums(i, block) + begin, count, totals);
      }
    }
    gradient(i).StoreColumns(totals, begin, count);
  }

  const Operands<C>& operands_;
  const Plan& plan_;
  Sums sums_[2];  // gamma's and beta's
};

}  // namespace lnbp

#endif  // LNBP_ONNX_BY_ROWS_H_
