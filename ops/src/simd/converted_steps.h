// SPDX-License-Identifier: Apache-2.0
//
// RowFunctions for elements of T by way of the Steps (see row_steps.h) for its
// compute type: some elements at a time are converted, and input_delta back, in
// loops that a compiler can vectorise.

#ifndef LNBP_ONNX_CONVERTED_STEPS_H_
#define LNBP_ONNX_CONVERTED_STEPS_H_

#include <cstddef>

#include "element_types.h"
#include "inline.h"
#include "row_functions.h"
#include "row_steps.h"
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

// `Steps` tells those of instruction sets apart.
template <typename T, typename Steps>
struct ConvertedElements {
  using C = ComputeType<T>;

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
};

// For rows, and tiles of them, of any length: some columns of a row at a time.
template <typename T, typename StepsOfComputeType>
struct ConvertedSteps {
  using C = ComputeType<T>;
  using Elements = ConvertedElements<T, StepsOfComputeType>;
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
      Columns columns(tile, row, i);
      columns.tile.gamma_sums = tile.gamma_sums + i;
      columns.tile.beta_sums = tile.beta_sums + i;
      OneRow::Apply(columns.tile, row, values);
      Elements::Store(columns.delta, columns.tile.num_columns, tile.input_delta,
                      row * tile.row_stride + i);
    }
  }

  static void FinishStores() {}

 private:
  // Few enough for the arrays to stay in the first-level cache.
  static constexpr std::size_t kMaxColumns = 512;

  // Columns of a row from `begin` on, as a tile in which every row is that one.
  struct Columns {
    Columns(const Tile<C>& from, std::size_t row, std::size_t begin)
        : tile(from) {
      const std::size_t rest = from.num_columns - begin;
      const std::size_t count = rest < kMaxColumns ? rest : kMaxColumns;
      const std::size_t first = row * from.row_stride + begin;
      Elements::Load(from.input_forward, first, count, x);
      Elements::Load(from.output_delta, first, count, delta);
      tile.input_forward = x;
      tile.output_delta = tile.input_delta = delta;
      tile.gamma += begin;
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

// Whole rows that fit are converted once, for their sums and for input_delta.
template <typename T, typename Steps>
class ConvertedFunctionsOf {
  using C = ComputeType<T>;
  using Elements = ConvertedElements<T, Steps>;
  using LongRows = RowFunctionsOf<T, C, ConvertedSteps<T, Steps>>;
  using ConvertedRows = RowFunctionsOf<C, C, Steps>;

 public:
  static constexpr RowFunctions<C> Table() {
    RowFunctions<C> table = LongRows::Table();
    table.whole_rows = WholeRows;
    table.finish_stores = Steps::FinishStores;
    return table;
  }

 private:
  static constexpr std::size_t kMaxColumns = 2048;
  // What is converted at a time, if it is more than a row: as much as keeps
  // several arrays of it, and what is asked for ahead, in the first-level
  // cache.
  static constexpr std::size_t kBatch = 4096 / sizeof(C);
  static constexpr std::size_t kLine = 64;

  static void WholeRows(const Tile<C>& tile, std::size_t num_rows,
                        std::size_t group_rows, RowMeans means,
                        RowValues<C>& values) {
    const std::size_t num_columns = tile.num_columns;
    if (num_columns > kMaxColumns) {
      return LongRows::Table().whole_rows(tile, num_rows, group_rows, means,
                                          values);
    }
    const std::size_t most = num_columns < kBatch ? kBatch / num_columns : 1;
    alignas(kLine) C x[kMaxColumns];
    alignas(kLine) C delta[kMaxColumns];  // output_delta, then input_delta
    Tile<C> converted = tile;
    converted.input_forward = x;
    converted.output_delta = converted.input_delta = delta;
    converted.rows_ahead = converted.rows_summed_ahead = 0;
    converted.past_cache = false;
    typename Steps::template StageOf<kMaxColumns * sizeof(T)> stage;
    RowValues<C> some;
    some.has_residual = values.has_residual;
    for (std::size_t begin = 0; begin < num_rows; begin += most) {
      const std::size_t rest = num_rows - begin;
      const std::size_t rows = rest < most ? rest : most;
      if (!values.has_residual) {
        for (std::size_t row = 0; row < rows; ++row) {
          some.mean[row] = values.mean[begin + row];
          some.variance[row] = values.variance[begin + row];
        }
      }
      const std::size_t first = begin * num_columns;
      const std::size_t count = rows * num_columns;
      const auto ask_for_next = [&](const void* tensor) {
        if (tile.rows_ahead == 0) return;
        const T* const next = static_cast<const T*>(tensor) + first + count;
        for (std::size_t i = 0; i < count; i += kLine / sizeof(T)) {
          Steps::Prefetch(next + i);
        }
      };
      Elements::Load(tile.input_forward, first, count, x);
      Elements::Load(tile.output_delta, first, count, delta);
      // Not one right after the other: only so many lines can be on their way.
      ask_for_next(tile.input_forward);
      ConvertedRows::Table().whole_rows(converted, rows, group_rows, means,
                                        some);
      ask_for_next(tile.output_delta);
      T* const to = static_cast<T*>(tile.input_delta) + first;
      Elements::Store(delta, count, tile.past_cache ? stage.At(to) : to, 0);
      if (tile.past_cache) stage.Add(count * sizeof(T));
    }
  }
};

}  // namespace lnbp

#endif  // LNBP_ONNX_CONVERTED_STEPS_H_
