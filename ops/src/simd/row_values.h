// SPDX-License-Identifier: Apache-2.0
//
// What each row has of its own: its statistics, its sums over the columns and
// what follows from them.

#ifndef LNBP_ONNX_ROW_VALUES_H_
#define LNBP_ONNX_ROW_VALUES_H_

#include <math.h>

#include <cstddef>
#include <limits>

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
// Given statistics have no residual; theirs is not read. Computed ones have the
// mean of x - mean. At first the mean is that of a few columns, and the
// residual zero while the sums are made; where these show that it is not small
// beside the standard deviation, both are made in passes of their own, the
// residual being what rounding the mean left behind.
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

  // But for the variance.
  void CopyRow(const RowValues& other, std::size_t row) {
    mean[row] = other.mean[row];
    residual[row] = other.residual[row];
    rstd[row] = other.rstd[row];
    shift[row] = other.shift[row];
    slope[row] = other.slope[row];
    offset[row] = other.offset[row];
  }
};

// Sums over columns, for each of some rows.
template <std::size_t kRows>
struct RowSums {
  double g[kRows];
  double products[kRows];  // of g * d
  double centred[kRows];   // of x - mean; like the next 0 without residuals
  double squares[kRows];   // of d * d

  // Those of `some`, as rows from `row` on.
  template <std::size_t kSome>
  LNBP_INLINE void Set(const RowSums<kSome>& some, std::size_t row) {
    for (std::size_t r = 0; r < kSome; ++r) {
      g[row + r] = some.g[r];
      products[row + r] = some.products[r];
      centred[row + r] = some.centred[r];
      squares[row + r] = some.squares[r];
    }
  }

  LNBP_INLINE void Add(const RowSums& other, std::size_t num_rows = kRows) {
    for (std::size_t r = 0; r < num_rows; ++r) {
      g[r] += other.g[r];
      products[r] += other.products[r];
      centred[r] += other.centred[r];
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

  // Before the sums: from the mean of the first columns. Their residual is less
  // than the last place of the mean. It makes no difference to the result, but
  // without it d would be a multiple of a power of two, and the squares of such
  // numbers are rounded down more often than up.
  template <typename C>
  LNBP_INLINE void SetFirstMean(double mean, std::size_t row,
                                RowValues<C>& values) const {
    constexpr C kPartOfLastPlace =
        static_cast<C>(0.3) * std::numeric_limits<C>::epsilon();
    values.mean[row] = static_cast<C>(mean);
    values.residual[row] = values.mean[row] * kPartOfLastPlace;
  }

  // Whether a first mean was near enough to the mean for exact sums.
  template <typename C, std::size_t kRows>
  LNBP_INLINE bool AreExact(const RowSums<kRows>& sums, std::size_t r,
                            std::size_t row, const RowValues<C>& values) const {
    const double rest =
        sums.centred[r] * inverse_norm_size - values.residual[row];
    return 2 * rest * rest <= sums.squares[r] * inverse_norm_size;
  }

  // Of `num_rows` rows from `row` on. After a first mean their residuals were
  // too small by the rest.
  // input_delta = rstd * (g - (mean of g + xhat * mean of g * xhat)), so
  // slope = -rstd * mean of g * xhat and offset = -rstd * mean of g.
  template <typename C, std::size_t kRows>
  LNBP_INLINE void SetFactors(const RowSums<kRows>& sums, std::size_t row,
                              bool is_first_mean, RowValues<C>& values,
                              std::size_t num_rows = kRows) const {
    double products[kRows];
    for (std::size_t r = 0; r < num_rows; ++r) {
      products[r] = sums.products[r];
      values.shift[row + r] = 0;
    }
    if (values.has_residual) {
      for (std::size_t r = 0; r < num_rows; ++r) {
        const double residual = is_first_mean
                                    ? sums.centred[r] * inverse_norm_size
                                    : values.residual[row + r];
        const double rest = residual - values.residual[row + r];
        products[r] -= rest * sums.g[r];
        values.rstd[row + r] = static_cast<C>(
            Rstd(sums.squares[r] * inverse_norm_size - rest * rest));
        values.shift[row + r] =
            static_cast<C>(-residual) * values.rstd[row + r];
      }
    }
    for (std::size_t r = 0; r < num_rows; ++r) {
      const auto rstd = static_cast<double>(values.rstd[row + r]);
      const double factor = -rstd * inverse_norm_size;
      values.slope[row + r] = static_cast<C>(factor * rstd * products[r]);
      values.offset[row + r] = static_cast<C>(factor * sums.g[r]);
    }
  }
};

}  // namespace lnbp

#endif  // LNBP_ONNX_ROW_VALUES_H_
