// SPDX-License-Identifier: Apache-2.0
//
// The loops over elements. A variant of the kernel, such as one for a SIMD
// instruction set, is one table of these functions for each element type;
// select_row_functions.h chooses among the variants.

#ifndef LNBP_ONNX_ROW_FUNCTIONS_H_
#define LNBP_ONNX_ROW_FUNCTIONS_H_

#include <cstddef>

#include "element_types.h"

namespace lnbp {

// No sum of the compute type runs over more columns than kMaxTileColumns, or
// over more rows than kMaxTileRows: longer sums are folded in double.
inline constexpr std::size_t kMaxTileColumns = 2048;
inline constexpr std::size_t kMaxTileRows = 64;

// A rectangle of the tensors: at most kMaxTileRows x kMaxTileColumns elements.
struct Tile {
  const void* input_forward;  // the upper left element
  const void* output_delta;   // the upper left element
  std::size_t row_stride;     // in elements
  std::size_t num_rows;
  std::size_t num_columns;
};

// d = ((x - mean) - residual) * scale. The residual is the mean of x - mean: it
// takes out what rounding the mean of a row left behind.
template <typename C>
struct Centre {
  C mean;
  C residual;
  C scale;
};

// Sums over columns, for d as the Centre of the row has it.
struct RowSums {
  double squares;   // of d * d
  double g;         // of g = output_delta * gamma
  double products;  // of g * d
};

// input_delta = rstd * (g - (mean_g + xhat * mean_products))
template <typename C>
struct RowFactors {
  C mean;
  C residual;
  C rstd;
  C mean_g;
  C mean_products;  // of g * xhat
};

// In each function gamma, gamma_sums and beta_sums point to the tile's first
// column. gamma may be null, which stands for 1; so may the sums, which are
// not wanted then.
template <typename C>
struct RowFunctions {
  // sums[row] = sum of d
  void (*sum_input)(const Tile& tile, const Centre<C>* centres, double* sums);

  // sums[row] = the sums, `squares` only if with_squares.
  void (*sum_products)(const Tile& tile, const Centre<C>* centres,
                       const C* gamma, bool with_squares, RowSums* sums);

  // Writes the rectangle that begins at input_delta, which may be that of
  // output_delta, and adds each row's output_delta * xhat to gamma_sums and
  // its output_delta to beta_sums.
  void (*apply)(const Tile& tile, const RowFactors<C>* factors, const C* gamma,
                void* input_delta, C* gamma_sums, C* beta_sums);
};

}  // namespace lnbp

#endif  // LNBP_ONNX_ROW_FUNCTIONS_H_
