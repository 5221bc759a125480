// SPDX-License-Identifier: Apache-2.0

#include "kernel.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "plan.h"
#include "row_functions.h"
#include "row_values.h"
#include "scratch.h"
#include "select_row_functions.h"

namespace lnbp {
namespace {

// Columns over which the sums of all blocks are added up at a time.
constexpr std::size_t kFoldColumns = 256;
// What is worth handing to another thread: the sums of 4 blocks at 128 x 768
// are not, by 2 us of 24.
constexpr std::size_t kMinFoldElements = 16 * 1024;

template <typename C>
void LoadElements(ElementType type, const void* from, std::size_t begin,
                  std::size_t count, C* to) {
  WithElementType(type, [=](auto* null) {
    using T = std::remove_pointer_t<decltype(null)>;
    const T* elements = static_cast<const T*>(from) + begin;
    for (std::size_t i = 0; i < count; ++i) to[i] = ToCompute<C>(elements[i]);
  });
}

template <typename C, typename Sum>
void StoreElements(ElementType type, const Sum* from, std::size_t begin,
                   std::size_t count, void* to) {
  WithElementType(type, [=](auto* null) {
    using T = std::remove_pointer_t<decltype(null)>;
    T* elements = static_cast<T*>(to) + begin;
    for (std::size_t i = 0; i < count; ++i) {
      elements[i] = FromCompute<T>(static_cast<C>(from[i]));
    }
  });
}

// gamma_delta or beta_delta. The columns of all rows are summed first; where
// columns share an element, Finish adds up their sums.
template <typename C>
class ParameterGradient {
 public:
  ParameterGradient(ElementType type, const Broadcast& broadcast, void* output)
      : type_(type), broadcast_(broadcast), output_(output) {}

  bool is_wanted() const { return output_ != nullptr; }

  void AddTo(Scratch& scratch, std::size_t norm_size, const Plan& plan) {
    tile_sums_ = scratch.Add<C>(norm_size, plan.num_blocks);
    if (is_wanted() && plan.has_many_tiles()) {
      block_sums_ = scratch.Add<double>(norm_size, plan.num_blocks);
    }
    AddTotalsTo(scratch, norm_size);
  }

  void AddTotalsTo(Scratch& scratch, std::size_t norm_size) {
    if (!is_wanted() || broadcast_.is_identity()) return;
    totals_ = scratch.Add<double>(norm_size);
    elements_ = scratch.Add<double>(broadcast_.size());
  }

  // The sums over the rows of a tile, and over the rows of a block.
  C* TileSums(const Scratch& scratch, std::size_t norm_size,
              std::size_t block) const {
    return scratch.Get<C>(tile_sums_) + block * norm_size;
  }
  double* BlockSums(const Scratch& scratch, std::size_t norm_size,
                    std::size_t block) const {
    return scratch.Get<double>(block_sums_) + block * norm_size;
  }

  template <typename Sum>
  void StoreColumns(const Scratch& scratch, const Sum* sums, std::size_t begin,
                    std::size_t count) const {
    if (broadcast_.is_identity()) {
      StoreElements<C>(type_, sums, begin, count, output_);
    } else {
      std::copy_n(sums, count, scratch.Get<double>(totals_) + begin);
    }
  }

  void Finish(const Scratch& scratch, std::size_t norm_size) const {
    if (!is_wanted() || broadcast_.is_identity()) return;
    const double* totals = scratch.Get<double>(totals_);
    double* elements = scratch.Get<double>(elements_);
    std::fill_n(elements, broadcast_.size(), 0.0);
    broadcast_.ForEachColumn(norm_size,
                             [=](std::size_t column, std::size_t element) {
                               elements[element] += totals[column];
                             });
    StoreElements<C>(type_, elements, 0, broadcast_.size(), output_);
  }

  void StoreZeros() const {
    if (!is_wanted()) return;
    std::memset(output_, 0, broadcast_.size() * SizeOf(type_));
  }

 private:
  ElementType type_;
  const Broadcast& broadcast_;
  void* output_;
  Scratch::Piece tile_sums_;
  Scratch::Piece block_sums_;
  Scratch::Piece totals_;
  Scratch::Piece elements_;
};

template <typename C>
class Backprop {
 public:
  Backprop(const Arguments& arguments, ThreadPool& pool)
      : arguments_(arguments),
        pool_(pool),
        num_rows_(arguments.num_rows),
        norm_size_(arguments.norm_size),
        means_{1 / static_cast<double>(arguments.norm_size),
               static_cast<double>(arguments.epsilon)},
        element_size_(SizeOf(arguments.type)),
        functions_(SelectRowFunctions<C>(arguments.type, arguments.isa)),
        gradients_{{arguments.parameter_type, arguments.gamma_broadcast,
                    arguments.gamma_delta},
                   {arguments.parameter_type, arguments.beta_broadcast,
                    arguments.beta_delta}} {}

  KernelResult Run() {
    if (num_rows_ == 0 || norm_size_ == 0) {
      for (const auto& gradient : gradients_) gradient.StoreZeros();
      return KernelResult::kOk;
    }
    past_cache_ = IsPastCache();
    plan_ = MakePlan(num_rows_, norm_size_, element_size_, past_cache_);
    if (needs_gamma_row()) gamma_row_ = scratch_.Add<C>(norm_size_);
    if (plan_.by_columns) {
      column_means_ = scratch_.Add<double>(num_rows_, plan_.num_tiles);
      column_sums_ = scratch_.Add<TileSums>(plan_.num_tiles);
    }
    for (auto& gradient : gradients_) {
      if (plan_.by_columns) {
        gradient.AddTotalsTo(scratch_, norm_size_);
      } else {
        gradient.AddTo(scratch_, norm_size_, plan_);
      }
    }
    if (!scratch_.Allocate()) return KernelResult::kOutOfMemory;
    PrepareGamma();
    if (!(plan_.by_columns ? RunByColumns() : RunByRows())) {
      return KernelResult::kThreadPoolFailed;
    }
    for (const auto& gradient : gradients_) {
      gradient.Finish(scratch_, norm_size_);
    }
    return KernelResult::kOk;
  }

 private:
  bool has_statistics() const { return arguments_.mean != nullptr; }

  // Whether the kernel keeps an array of gamma as the row functions read it.
  bool needs_gamma_row() const {
    const bool is_compute_type =
        WithElementType(arguments_.parameter_type, [](auto* null) {
          return std::is_same_v<std::remove_pointer_t<decltype(null)>, C>;
        });
    return arguments_.gamma == nullptr || !is_compute_type ||
           !arguments_.gamma_broadcast.is_identity();
  }

  void PrepareGamma() {
    gamma_ = static_cast<const C*>(arguments_.gamma);
    if (!needs_gamma_row()) return;
    C* row = scratch_.Get<C>(gamma_row_);
    gamma_ = row;
    if (arguments_.gamma == nullptr) {
      std::fill_n(row, norm_size_, C{1});
      return;
    }
    if (arguments_.gamma_broadcast.is_identity()) {
      LoadElements(arguments_.parameter_type, arguments_.gamma, 0, norm_size_,
                   row);
      return;
    }
    WithElementType(arguments_.parameter_type, [this, row](auto* null) {
      using P = std::remove_pointer_t<decltype(null)>;
      const P* gamma = static_cast<const P*>(arguments_.gamma);
      arguments_.gamma_broadcast.ForEachColumn(
          norm_size_, [=](std::size_t column, std::size_t element) {
            row[column] = ToCompute<C>(gamma[element]);
          });
    });
  }

  // Of all columns, or of a tile of columns.
  Tile<C> TileAt(std::size_t row, std::size_t column, std::size_t num_columns,
                 C* gamma_sums, C* beta_sums) const {
    const std::size_t offset = (row * norm_size_ + column) * element_size_;
    return {
        static_cast<const unsigned char*>(arguments_.input_forward) + offset,
        static_cast<const unsigned char*>(arguments_.output_delta) + offset,
        gamma_ + column,
        norm_size_,
        num_columns,
        plan_.rows_ahead,
        plan_.rows_summed_ahead,
        static_cast<unsigned char*>(arguments_.input_delta) + offset,
        gamma_sums,
        beta_sums,
        past_cache_};
  }

  // Whether input_delta would only drive out of the last-level cache what is
  // still to be read: 1.5 x at 8192 x 1024. In place its lines are there
  // already.
  bool IsPastCache() const {
    const std::size_t row_bytes = 3 * norm_size_ * element_size_;
    return arguments_.cache_bytes != 0 &&
           num_rows_ > arguments_.cache_bytes / 4 * 3 / row_bytes &&
           arguments_.input_delta != arguments_.output_delta;
  }

  // The statistics that are given.
  void LoadStatistics(std::size_t row, std::size_t rows,
                      RowValues<C>& values) const {
    values.has_residual = !has_statistics();
    if (!has_statistics()) return;
    LoadElements(arguments_.statistics_type, arguments_.mean, row, rows,
                 values.mean);
    LoadElements(arguments_.statistics_type, arguments_.variance, row, rows,
                 values.variance);
  }

  bool RunByRows() {
    if (!ParallelFor(pool_, plan_.num_blocks,
                     [this](std::size_t block) noexcept { RunBlock(block); })) {
      return false;
    }
    if (!gradients_[0].is_wanted() && !gradients_[1].is_wanted()) return true;
    const std::size_t num_tasks =
        1 + plan_.num_blocks * norm_size_ / kMinFoldElements;
    return ParallelFor(
        pool_, num_tasks, [this, num_tasks](std::size_t task) noexcept {
          for (std::size_t begin = task * kFoldColumns; begin < norm_size_;
               begin += num_tasks * kFoldColumns) {
            for (const auto& gradient : gradients_) {
              if (gradient.is_wanted()) FoldBlocks(gradient, begin);
            }
          }
        });
  }

  void RunBlock(std::size_t block) const {
    const std::size_t begin = block * plan_.block_rows;
    const std::size_t end = std::min(begin + plan_.block_rows, num_rows_);
    C* const gamma_sums = gradients_[0].TileSums(scratch_, norm_size_, block);
    C* const beta_sums = gradients_[1].TileSums(scratch_, norm_size_, block);
    RowValues<C> values;
    for (std::size_t row = begin; row < end; row += kMaxTileRows) {
      const std::size_t rows = std::min(kMaxTileRows, end - row);
      std::fill_n(gamma_sums, norm_size_, C{0});
      std::fill_n(beta_sums, norm_size_, C{0});
      LoadStatistics(row, rows, values);
      functions_.whole_rows(TileAt(row, 0, norm_size_, gamma_sums, beta_sums),
                            rows, plan_.group_rows, means_, values);
      for (const auto& gradient : gradients_) {
        if (gradient.is_wanted() && plan_.has_many_tiles()) {
          FoldTile(gradient, block, row == begin);
        }
      }
    }
    if (past_cache_) functions_.finish_stores();
  }

  void FoldTile(const ParameterGradient<C>& gradient, std::size_t block,
                bool is_first) const {
    const C* tile = gradient.TileSums(scratch_, norm_size_, block);
    double* sums = gradient.BlockSums(scratch_, norm_size_, block);
    if (is_first) std::fill_n(sums, norm_size_, 0.0);
    functions_.fold(tile, norm_size_, sums);
  }

  void FoldBlocks(const ParameterGradient<C>& gradient,
                  std::size_t begin) const {
    const std::size_t count = std::min(kFoldColumns, norm_size_ - begin);
    double totals[kFoldColumns] = {};
    for (std::size_t block = 0; block < plan_.num_blocks; ++block) {
      if (plan_.has_many_tiles()) {
        const double* sums =
            gradient.BlockSums(scratch_, norm_size_, block) + begin;
        for (std::size_t i = 0; i < count; ++i) totals[i] += sums[i];
      } else {
        functions_.fold(gradient.TileSums(scratch_, norm_size_, block) + begin,
                        count, totals);
      }
    }
    gradient.StoreColumns(scratch_, totals, begin, count);
  }

  bool RunByColumns() {
    RowValues<C> values;
    LoadStatistics(0, num_rows_, values);
    if (has_statistics()) {
      means_.SetRstd(num_rows_, values);
    } else {
      std::fill_n(values.mean, num_rows_, C{0});
      if (!SetMeanByColumns(values.mean, values.mean) ||
          !SetMeanByColumns(values.mean, values.residual)) {
        return false;
      }
    }
    auto* const sums = scratch_.Get<TileSums>(column_sums_);
    if (!ParallelFor(pool_, plan_.num_tiles,
                     [this, &values, sums](std::size_t tile) noexcept {
                       functions_.sum_products(
                           ColumnsAt(tile, nullptr, nullptr), num_rows_, values,
                           sums[tile]);
                     })) {
      return false;
    }
    for (std::size_t tile = 1; tile < plan_.num_tiles; ++tile) {
      sums[0].Add(sums[tile], num_rows_);
    }
    for (std::size_t row = 0; row < num_rows_; ++row) {
      means_.SetFactors(sums[0], row, row, values);
    }
    return ParallelFor(pool_, plan_.num_tiles,
                       [this, &values](std::size_t tile) noexcept {
                         ApplyToColumns(tile, values);
                       });
  }

  // From the mean of x - `from`.
  bool SetMeanByColumns(const C* from, C* mean) {
    double* const sums = scratch_.Get<double>(column_means_);
    if (!ParallelFor(pool_, plan_.num_tiles,
                     [this, from, sums](std::size_t tile) noexcept {
                       functions_.sum_input(ColumnsAt(tile, nullptr, nullptr),
                                            num_rows_, from,
                                            sums + tile * num_rows_);
                     })) {
      return false;
    }
    for (std::size_t tile = 1; tile < plan_.num_tiles; ++tile) {
      for (std::size_t row = 0; row < num_rows_; ++row) {
        sums[row] += sums[tile * num_rows_ + row];
      }
    }
    for (std::size_t row = 0; row < num_rows_; ++row) {
      mean[row] = means_.Mean<C>(sums[row]);
    }
    return true;
  }

  Tile<C> ColumnsAt(std::size_t tile, C* gamma_sums, C* beta_sums) const {
    const std::size_t column = tile * kMaxTileColumns;
    return TileAt(0, column, std::min(kMaxTileColumns, norm_size_ - column),
                  gamma_sums, beta_sums);
  }

  void ApplyToColumns(std::size_t tile, const RowValues<C>& values) const {
    C sums[2][kMaxTileColumns] = {};
    const Tile<C> columns = ColumnsAt(tile, sums[0], sums[1]);
    functions_.apply(columns, num_rows_, values);
    if (past_cache_) functions_.finish_stores();
    for (std::size_t i = 0; i < 2; ++i) {
      if (!gradients_[i].is_wanted()) continue;
      gradients_[i].StoreColumns(scratch_, sums[i], tile * kMaxTileColumns,
                                 columns.num_columns);
    }
  }

  const Arguments& arguments_;
  ThreadPool& pool_;
  const std::size_t num_rows_;
  const std::size_t norm_size_;
  const RowMeans means_;
  const std::size_t element_size_;
  const RowFunctions<C>& functions_;
  ParameterGradient<C> gradients_[2];  // gamma's and beta's
  Plan plan_{};
  bool past_cache_ = false;
  Scratch scratch_;
  Scratch::Piece gamma_row_;
  Scratch::Piece column_means_;
  Scratch::Piece column_sums_;
  const C* gamma_ = nullptr;
};

}  // namespace

KernelResult LayerNormBackprop(const Arguments& arguments,
                               ThreadPool& pool) noexcept {
  if (ComputesInDouble(arguments.type)) {
    return Backprop<double>(arguments, pool).Run();
  }
  return Backprop<float>(arguments, pool).Run();
}

}  // namespace lnbp
