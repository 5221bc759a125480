// SPDX-License-Identifier: Apache-2.0
//
// What each row has of its own: its statistics, its sums over the columns and
// what follows from them.

#ifndef LNBP_ONNX_ROW_VALUES_H_
#define LNBP_ONNX_ROW_VALUES_H_

#include <math.h>

#include <cstddef>

#include "inline.h"

namespace lnbp {

inline constexpr std::size_t kMaxTileRows = 64;

// For each row of a tile:
//
//     d = (x - mean) - residual
//     xhat = (x - mean) * rstd + shift, shift = -residual * rstd
//     input_delta = g * rstd + (xhat * slope + offset)
//
// with g = output_delta * gamma.
//
// The residual is the mean of x - mean: it takes out what rounding a computed
// mean left behind. Given statistics have none; theirs is not read.
template <typename C>
struct RowValues {
  bool has_residual;
  C mean[kMaxTileRows];
  C variance[kMaxTileRows];  // only where it is given
  C residual[kMaxTileRows];
  C rstd[kMaxTileRows];
  C shift[kMaxTileRows];
  C slope[kMaxTileRows];
  C offset[kMaxTileRows];
};

// Sums over columns, for each of some rows.
template <std::size_t kRows>
struct RowSums {
  double g[kRows];
  double products[kRows];  // of g * d
  double squares[kRows];   // of d * d; 0 where there is no residual

  LNBP_INLINE void Add(const RowSums& other, std::size_t num_rows = kRows) {
    for (std::size_t r = 0; r < num_rows; ++r) {
      g[r] += other.g[r];
      products[r] += other.products[r];
      squares[r] += other.squares[r];
    }
  }
};

// How the sums of a row become means.
struct RowMeans {
  double inverse_norm_size;
  double epsilon;

  LNBP_INLINE double Rstd(double variance) const {
    return 1 / sqrt(variance + epsilon);
  }

  // From given variances.
  template <typename C>
  LNBP_INLINE void SetRstd(std::size_t num_rows, RowValues<C>& values) const {
    for (std::size_t row = 0; row < num_rows; ++row) {
      values.rstd[row] = static_cast<C>(Rstd(values.variance[row]));
    }
  }

  // From sums of x - mean and the like.
  template <typename C>
  LNBP_INLINE C Mean(double sum) const {
    return static_cast<C>(sum * inverse_norm_size);
  }

  // input_delta = rstd * (g - (mean of g + xhat * mean of g * xhat)), so
  // slope = -rstd * mean of g * xhat and offset = -rstd * mean of g.
  template <typename C, std::size_t kRows>
  LNBP_INLINE void SetFactors(const RowSums<kRows>& sums, std::size_t r,
                              std::size_t row, RowValues<C>& values) const {
    values.shift[row] = 0;
    if (values.has_residual) {
      values.rstd[row] =
          static_cast<C>(Rstd(sums.squares[r] * inverse_norm_size));
      values.shift[row] = -values.residual[row] * values.rstd[row];
    }
    const auto rstd = static_cast<double>(values.rstd[row]);
    const double factor = -rstd * inverse_norm_size;
    values.slope[row] = static_cast<C>(factor * rstd * sums.products[r]);
    values.offset[row] = static_cast<C>(factor * sums.g[r]);
  }
};

}  // namespace lnbp

#endif  // LNBP_ONNX_ROW_VALUES_H_
