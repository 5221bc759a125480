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
  // How many rows further on the rows lie that are read next; 0: better not
  // to ask for them early.
  std::size_t rows_ahead;
};

// d = (x - mean) * scale where the statistics are given; (x - mean) - residual
// where they are computed. The residual is the mean of x - mean: it takes out
// what rounding the mean of a row left behind.
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

// input_delta = rstd * (g - (mean_g + xhat * mean_products)),
// xhat = ((x - mean) - residual) * rstd; the residual of given statistics is 0.
template <typename C>
struct RowFactors {
  C mean;
  C residual;
  C rstd;
  C mean_g;
  C mean_products;  // of g * xhat
};

// Pointers to a tile's upper left element or first column.
template <typename C>
struct Output {
  void* input_delta;  // may be output_delta
  C* gamma_sums;      // of output_delta * xhat; null, as is beta_sums, where no
                      // sums are wanted
  C* beta_sums;       // of output_delta
  bool past_cache;    // input_delta is better not kept in the cache
};

// In each function gamma points to the tile's first column.
template <typename C>
struct RowFunctions {
  // sums[row] = sum of x - means[row]
  void (*sum_input)(const Tile& tile, const C* means, double* sums);

  // sums[row] = the sums, `squares` only without statistics.
  void (*sum_products)(const Tile& tile, const Centre<C>* centres,
                       const C* gamma, bool has_statistics, RowSums* sums);

  // Writes input_delta and adds to the sums.
  void (*apply)(const Tile& tile, const RowFactors<C>* factors, const C* gamma,
                bool has_statistics, const Output<C>& to);
};

}  // namespace lnbp

#endif  // LNBP_ONNX_ROW_FUNCTIONS_H_
