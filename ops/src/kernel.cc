// SPDX-License-Identifier: Apache-2.0

#include "kernel.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "plan.h"
#include "row_functions.h"
#include "scratch.h"
#include "select_row_functions.h"

namespace lnbp {
namespace {

// Columns over which the sums of all blocks are added up at a time.
constexpr std::size_t kFoldColumns = 256;
// What is worth handing to another thread: the sums of 6 blocks at 128 x 768
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

template <typename C>
void StoreElements(ElementType type, const double* from, std::size_t begin,
                   std::size_t count, void* to) {
  WithElementType(type, [=](auto* null) {
    using T = std::remove_pointer_t<decltype(null)>;
    T* elements = static_cast<T*>(to) + begin;
    for (std::size_t i = 0; i < count; ++i) {
      elements[i] = FromCompute<T>(static_cast<C>(from[i]));
    }
  });
}

void AddTo(RowSums& total, const RowSums& sums) {
  total.squares += sums.squares;
  total.g += sums.g;
  total.products += sums.products;
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
    if (plan.has_many_tiles()) {
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

  void StoreColumns(const Scratch& scratch, const double* sums,
                    std::size_t begin, std::size_t count) const {
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
        inverse_norm_size_(1 / static_cast<double>(arguments.norm_size)),
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
    plan_ = MakePlan(num_rows_, norm_size_, element_size_);
    past_cache_ = IsPastCache();
    const std::size_t num_sums = plan_.num_tiles * num_rows_;
    if (needs_gamma_row()) gamma_row_ = scratch_.Add<C>(norm_size_);
    if (plan_.by_columns) {
      column_sums_ = scratch_.Add<double>(num_sums);
      column_products_ = scratch_.Add<RowSums>(num_sums);
    }
    for (auto& gradient : gradients_) {
      if (plan_.by_columns) {
        gradient.AddTotalsTo(scratch_, norm_size_);
      } else if (wants_sums()) {
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

  // The sums of both gradients, or of neither: it takes no time to speak of to
  // add up one that is not wanted.
  bool wants_sums() const {
    return gradients_[0].is_wanted() || gradients_[1].is_wanted();
  }

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

  std::size_t Offset(std::size_t row, std::size_t tile) const {
    return (row * norm_size_ + tile * kMaxTileColumns) * element_size_;
  }

  Tile TileAt(std::size_t row, std::size_t rows, std::size_t tile) const {
    const std::size_t offset = Offset(row, tile);
    return {
        static_cast<const unsigned char*>(arguments_.input_forward) + offset,
        static_cast<const unsigned char*>(arguments_.output_delta) + offset,
        norm_size_,
        rows,
        std::min(kMaxTileColumns, norm_size_ - tile * kMaxTileColumns),
        plan_.rows_ahead};
  }

  const C* GammaAt(std::size_t tile) const {
    return gamma_ + tile * kMaxTileColumns;
  }

  Output<C> OutputAt(std::size_t row, std::size_t tile, C* gamma_sums,
                     C* beta_sums) const {
    return {
        static_cast<unsigned char*>(arguments_.input_delta) + Offset(row, tile),
        gamma_sums, beta_sums, past_cache_};
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

  double Rstd(double variance) const {
    return 1 / std::sqrt(variance + static_cast<double>(arguments_.epsilon));
  }

  C Mean(double sum) const { return static_cast<C>(sum * inverse_norm_size_); }

  // Of the given statistics; without them, what leaves the elements as they
  // are.
  void InitialCentres(std::size_t row, std::size_t rows,
                      Centre<C>* centres) const {
    C mean[kMaxTileRows] = {};
    C variance[kMaxTileRows];
    if (has_statistics()) {
      LoadElements(arguments_.statistics_type, arguments_.mean, row, rows,
                   mean);
      LoadElements(arguments_.statistics_type, arguments_.variance, row, rows,
                   variance);
    }
    for (std::size_t i = 0; i < rows; ++i) {
      const double scale = has_statistics() ? Rstd(variance[i]) : 1;
      centres[i] = {mean[i], 0, static_cast<C>(scale)};
    }
  }

  RowFactors<C> Factors(const Centre<C>& centre, const RowSums& sums) const {
    if (has_statistics()) {
      return {centre.mean, centre.residual, centre.scale, Mean(sums.g),
              Mean(sums.products)};
    }
    const double rstd = Rstd(sums.squares * inverse_norm_size_);
    return {centre.mean, centre.residual, static_cast<C>(rstd), Mean(sums.g),
            Mean(sums.products * rstd)};
  }

  bool RunByRows() {
    if (!ParallelFor(pool_, plan_.num_blocks,
                     [this](std::size_t block) noexcept { RunBlock(block); })) {
      return false;
    }
    if (!wants_sums()) return true;
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
    C* sums[2] = {};
    if (wants_sums()) {
      for (std::size_t i = 0; i < 2; ++i) {
        sums[i] = gradients_[i].TileSums(scratch_, norm_size_, block);
      }
    }
    for (std::size_t tile_begin = begin; tile_begin < end;
         tile_begin += kMaxTileRows) {
      const std::size_t tile_end = std::min(tile_begin + kMaxTileRows, end);
      for (C* sum : sums) {
        if (sum != nullptr) std::fill_n(sum, norm_size_, C{0});
      }
      for (std::size_t row = tile_begin; row < tile_end;
           row += plan_.group_rows) {
        RunGroup(row, std::min(plan_.group_rows, tile_end - row), sums[0],
                 sums[1]);
      }
      for (const auto& gradient : gradients_) {
        if (gradient.is_wanted() && plan_.has_many_tiles()) {
          FoldTile(gradient, block, tile_begin == begin);
        }
      }
    }
  }

  void RunGroup(std::size_t row, std::size_t rows, C* gamma_sums,
                C* beta_sums) const {
    Centre<C> centres[kMaxTileRows];
    InitialCentres(row, rows, centres);
    if (!has_statistics()) {
      for (C Centre<C>::* const part :
           {&Centre<C>::mean, &Centre<C>::residual}) {
        C means[kMaxTileRows];
        for (std::size_t i = 0; i < rows; ++i) means[i] = centres[i].mean;
        double totals[kMaxTileRows] = {};
        double sums[kMaxTileRows];
        for (std::size_t tile = 0; tile < plan_.num_tiles; ++tile) {
          functions_.sum_input(TileAt(row, rows, tile), means, sums);
          for (std::size_t i = 0; i < rows; ++i) totals[i] += sums[i];
        }
        for (std::size_t i = 0; i < rows; ++i) {
          centres[i].*part = Mean(totals[i]);
        }
      }
    }
    RowSums totals[kMaxTileRows] = {};
    RowSums sums[kMaxTileRows];
    for (std::size_t tile = 0; tile < plan_.num_tiles; ++tile) {
      functions_.sum_products(TileAt(row, rows, tile), centres, GammaAt(tile),
                              has_statistics(), sums);
      for (std::size_t i = 0; i < rows; ++i) AddTo(totals[i], sums[i]);
    }
    RowFactors<C> factors[kMaxTileRows];
    for (std::size_t i = 0; i < rows; ++i) {
      factors[i] = Factors(centres[i], totals[i]);
    }
    for (std::size_t tile = 0; tile < plan_.num_tiles; ++tile) {
      const std::size_t column = tile * kMaxTileColumns;
      functions_.apply(
          TileAt(row, rows, tile), factors, GammaAt(tile), has_statistics(),
          OutputAt(row, tile,
                   gamma_sums == nullptr ? nullptr : gamma_sums + column,
                   beta_sums == nullptr ? nullptr : beta_sums + column));
    }
  }

  void FoldTile(const ParameterGradient<C>& gradient, std::size_t block,
                bool is_first) const {
    const C* tile = gradient.TileSums(scratch_, norm_size_, block);
    double* sums = gradient.BlockSums(scratch_, norm_size_, block);
    if (is_first) std::fill_n(sums, norm_size_, 0.0);
    for (std::size_t i = 0; i < norm_size_; ++i) {
      sums[i] += static_cast<double>(tile[i]);
    }
  }

  void FoldBlocks(const ParameterGradient<C>& gradient,
                  std::size_t begin) const {
    const std::size_t count = std::min(kFoldColumns, norm_size_ - begin);
    double totals[kFoldColumns] = {};
    const auto add = [&totals, count](const auto* sums) {
      for (std::size_t i = 0; i < count; ++i) {
        totals[i] += static_cast<double>(sums[i]);
      }
    };
    for (std::size_t block = 0; block < plan_.num_blocks; ++block) {
      if (plan_.has_many_tiles()) {
        add(gradient.BlockSums(scratch_, norm_size_, block) + begin);
      } else {
        add(gradient.TileSums(scratch_, norm_size_, block) + begin);
      }
    }
    gradient.StoreColumns(scratch_, totals, begin, count);
  }

  bool RunByColumns() {
    Centre<C> centres[kMaxTileRows];
    InitialCentres(0, num_rows_, centres);
    if (!has_statistics()) {
      double* sums = scratch_.Get<double>(column_sums_);
      for (C Centre<C>::* const part :
           {&Centre<C>::mean, &Centre<C>::residual}) {
        C means[kMaxTileRows];
        for (std::size_t i = 0; i < num_rows_; ++i) means[i] = centres[i].mean;
        if (!ParallelFor(pool_, plan_.num_tiles,
                         [this, &means, sums](std::size_t tile) noexcept {
                           functions_.sum_input(TileAt(0, num_rows_, tile),
                                                means, sums + tile * num_rows_);
                         })) {
          return false;
        }
        for (std::size_t row = 0; row < num_rows_; ++row) {
          double total = 0;
          for (std::size_t tile = 0; tile < plan_.num_tiles; ++tile) {
            total += sums[tile * num_rows_ + row];
          }
          centres[row].*part = Mean(total);
        }
      }
    }
    RowSums* products = scratch_.Get<RowSums>(column_products_);
    if (!ParallelFor(pool_, plan_.num_tiles,
                     [this, &centres, products](std::size_t tile) noexcept {
                       functions_.sum_products(
                           TileAt(0, num_rows_, tile), centres, GammaAt(tile),
                           has_statistics(), products + tile * num_rows_);
                     })) {
      return false;
    }
    RowFactors<C> factors[kMaxTileRows];
    for (std::size_t row = 0; row < num_rows_; ++row) {
      RowSums total{};
      for (std::size_t tile = 0; tile < plan_.num_tiles; ++tile) {
        AddTo(total, products[tile * num_rows_ + row]);
      }
      factors[row] = Factors(centres[row], total);
    }
    return ParallelFor(pool_, plan_.num_tiles,
                       [this, &factors](std::size_t tile) noexcept {
                         ApplyToColumns(tile, factors);
                       });
  }

  void ApplyToColumns(std::size_t tile, const RowFactors<C>* factors) const {
    C sums[2][kMaxTileColumns] = {};
    const Tile columns = TileAt(0, num_rows_, tile);
    functions_.apply(columns, factors, GammaAt(tile), has_statistics(),
                     OutputAt(0, tile, wants_sums() ? sums[0] : nullptr,
                              wants_sums() ? sums[1] : nullptr));
    double totals[kMaxTileColumns];
    for (std::size_t i = 0; i < 2; ++i) {
      if (!gradients_[i].is_wanted()) continue;
      std::copy_n(sums[i], columns.num_columns, totals);
      gradients_[i].StoreColumns(scratch_, totals, tile * kMaxTileColumns,
                                 columns.num_columns);
    }
  }

  const Arguments& arguments_;
  ThreadPool& pool_;
  const std::size_t num_rows_;
  const std::size_t norm_size_;
  const double inverse_norm_size_;
  const std::size_t element_size_;
  const RowFunctions<C>& functions_;
  ParameterGradient<C> gradients_[2];  // gamma's and beta's
  Plan plan_{};
  bool past_cache_ = false;
  Scratch scratch_;
  Scratch::Piece gamma_row_;
  Scratch::Piece column_sums_;
  Scratch::Piece column_products_;
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
