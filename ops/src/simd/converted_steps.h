// SPDX-License-Identifier: Apache-2.0
//
// The Steps (see row_steps.h) for elements of T by way of those for its compute
// type: some columns of a row at a time are converted, and input_delta back, in
// loops that a compiler can vectorise.

#ifndef LNBP_ONNX_CONVERTED_STEPS_H_
#define LNBP_ONNX_CONVERTED_STEPS_H_

#include <cstddef>

#include "element_types.h"
#include "inline.h"
#include "row_functions.h"
#include "row_values.h"

namespace lnbp {

// The steps for one row, compiled once for all types that are computed in C.
template <typename C, typename Steps>
struct OneRow {
  static void SumInput(const Tile<C>& tile, std::size_t row, const C* mean,
                       double* sums) {
    Steps::template SumInput<1>(tile, row, mean, sums);
  }
  static void SumProducts(const Tile<C>& tile, std::size_t row,
                          const RowValues<C>& values, RowSums<1>& sums) {
    Steps::template SumProducts<1>(tile, row, values, sums);
  }
  static void Apply(const Tile<C>& tile, std::size_t row,
                    const RowValues<C>& values) {
    typename Steps::Stage stage;
    Steps::template Apply<1>(tile, row, values, stage);
  }
};

template <typename T, typename StepsOfComputeType>
struct ConvertedSteps {
  using C = ComputeType<T>;
  using OneRow = lnbp::OneRow<C, StepsOfComputeType>;

  static constexpr std::size_t kRowsAtOnce = 1;
  static constexpr bool kSumsAhead = false;
  struct Stage {};

  template <std::size_t kRows>
  static void SumInput(const Tile<C>& tile, std::size_t row, const C* mean,
                       double* sums) {
    static_assert(kRows == 1);
    sums[0] = 0;
    for (std::size_t i = 0; i < tile.num_columns; i += kMaxColumns) {
      const Columns columns(tile, row, i);
      double more;
      OneRow::SumInput(columns.tile, row, mean, &more);
      sums[0] += more;
    }
  }

  template <std::size_t kRows>
  static void SumProducts(const Tile<C>& tile, std::size_t row,
                          const RowValues<C>& values, RowSums<kRows>& sums) {
    static_assert(kRows == 1);
    sums = {};
    for (std::size_t i = 0; i < tile.num_columns; i += kMaxColumns) {
      const Columns columns(tile, row, i);
      RowSums<1> more;
      OneRow::SumProducts(columns.tile, row, values, more);
      sums.Add(more);
    }
  }

  template <std::size_t kRows>
  static void Apply(const Tile<C>& tile, std::size_t row,
                    const RowValues<C>& values, Stage&) {
    static_assert(kRows == 1);
    for (std::size_t i = 0; i < tile.num_columns; i += kMaxColumns) {
      const Columns columns(tile, row, i);
      OneRow::Apply(columns.tile, row, values);
      Store(columns.delta, columns.tile.num_columns, tile.input_delta,
            row * tile.row_stride + i);
    }
  }

  static void FinishStores() {}

 private:
  // Few enough for the arrays to stay in the first-level cache.
  static constexpr std::size_t kMaxColumns = 512;

  static void Load(const void* from, std::size_t begin, std::size_t count,
                   C* to) {
    for (std::size_t i = 0; i < count; ++i) {
      to[i] = ToCompute<C>(LoadElement<T>(from, begin + i));
    }
  }
  static void Store(const C* from, std::size_t count, void* to,
                    std::size_t begin) {
    for (std::size_t i = 0; i < count; ++i) {
      StoreElement(to, begin + i, FromCompute<T>(from[i]));
    }
  }

  // Columns of a row from `begin` on, as a tile in which every row is that one.
  struct Columns {
    Columns(const Tile<C>& from, std::size_t row, std::size_t begin)
        : tile(from) {
      const std::size_t rest = from.num_columns - begin;
      const std::size_t count = rest < kMaxColumns ? rest : kMaxColumns;
      const std::size_t first = row * from.row_stride + begin;
      Load(from.input_forward, first, count, x);
      Load(from.output_delta, first, count, delta);
      tile.input_forward = x;
      tile.output_delta = tile.input_delta = delta;
      tile.gamma += begin;
      tile.gamma_sums += begin;
      tile.beta_sums += begin;
      tile.row_stride = 0;
      tile.num_columns = count;
      tile.rows_ahead = 0;
      tile.past_cache = false;
    }
    Columns(const Columns&) = delete;
    Columns& operator=(const Columns&) = delete;

    Tile<C> tile;
    alignas(64) C x[kMaxColumns];
    alignas(64) C delta[kMaxColumns];  // output_delta, then input_delta
  };
};

}  // namespace lnbp

#endif  // LNBP_ONNX_CONVERTED_STEPS_H_
