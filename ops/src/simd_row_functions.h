// SPDX-License-Identifier: Apache-2.0
//
// The loops over elements for any instruction set: `Elements` is that of
// simd_avx2.h or simd_avx512.h for the type of the tensors.
//
// Each function takes its rows four at a time, so that they share what is read
// of gamma and the lanes of their sums are added up together. It goes over the
// columns a vector at a time; what is left of the columns makes one vector
// more, of which only the First are there.

#ifndef LNBP_ONNX_SIMD_ROW_FUNCTIONS_H_
#define LNBP_ONNX_SIMD_ROW_FUNCTIONS_H_

#include <cstddef>
#include <cstdint>

#include "row_functions.h"
#include "simd.h"

namespace lnbp {

template <typename T, typename Elements>
class SimdRowFunctions {
  using C = ComputeType<T>;
  using Vector = typename Elements::Vector;
  using Columns = typename Elements::Columns;

 public:
  static constexpr RowFunctions<C> Table() {
    return {SumInput, SumProducts, Apply};
  }

 private:
  static constexpr std::size_t kLine = 64;

  // ---- sum_input

  static void SumInput(const Tile& tile, const C* means, double* sums) {
    std::size_t row = 0;
    for (; row + 4 <= tile.num_rows; row += 4) {
      SumInputOf<4>(tile, row, means + row, sums + row);
    }
    for (; row < tile.num_rows; ++row) {
      SumInputOf<1>(tile, row, means + row, sums + row);
    }
  }

  template <std::size_t kRows>
  static LNBP_INLINE void SumInputOf(const Tile& tile, std::size_t row,
                                     const C* means, double* sums) {
    const T* x[kRows];
    Vector mean[kRows];
    Vector sum[4];
    for (std::size_t r = 0; r < 4; ++r) sum[r] = Vector::Of(0);
    for (std::size_t r = 0; r < kRows; ++r) {
      x[r] = Row(tile.input_forward, tile, row + r);
      mean[r] = Vector::Of(means[r]);
    }
    std::size_t i = 0;
    for (; i + Vector::kSize <= tile.num_columns; i += Vector::kSize) {
      for (std::size_t r = 0; r < kRows; ++r) {
        sum[r] = sum[r] + (Elements::Load(x[r] + i, Whole{}) - mean[r]);
      }
    }
    if (i < tile.num_columns) {
      const First part{tile.num_columns - i};
      for (std::size_t r = 0; r < kRows; ++r) {
        const Vector d = Elements::Load(x[r] + i, part) - mean[r];
        sum[r] = sum[r] + Columns::Keep(d, part);
      }
    }
    double totals[4];
    SumLanes(sum, totals);
    for (std::size_t r = 0; r < kRows; ++r) sums[r] = totals[r];
  }

  // ---- sum_products

  static void SumProducts(const Tile& tile, const Centre<C>* centres,
                          const C* gamma, bool has_statistics, RowSums* sums) {
    if (has_statistics) {
      SumProductsOfAll<true>(tile, centres, gamma, sums);
    } else {
      SumProductsOfAll<false>(tile, centres, gamma, sums);
    }
  }

  template <bool kHasStatistics>
  static LNBP_INLINE void SumProductsOfAll(const Tile& tile,
                                           const Centre<C>* centres,
                                           const C* gamma, RowSums* sums) {
    std::size_t row = 0;
    for (; row + 4 <= tile.num_rows; row += 4) {
      SumProductsOf<kHasStatistics, 4>(tile, row, centres + row, gamma,
                                       sums + row);
    }
    for (; row < tile.num_rows; ++row) {
      SumProductsOf<kHasStatistics, 1>(tile, row, centres + row, gamma,
                                       sums + row);
    }
  }

  template <std::size_t kRows>
  struct Products {
    const T* x[kRows];
    const T* dy[kRows];
    Vector mean[kRows];
    Vector residual_or_scale[kRows];
    Vector squares[4];
    Vector g[4];
    Vector products[4];
  };

  template <bool kHasStatistics, std::size_t kRows>
  static LNBP_INLINE void SumProductsOf(const Tile& tile, std::size_t row,
                                        const Centre<C>* centres,
                                        const C* gamma, RowSums* sums) {
    Products<kRows> rows;
    for (std::size_t r = 0; r < 4; ++r) {
      rows.squares[r] = rows.g[r] = rows.products[r] = Vector::Of(0);
    }
    for (std::size_t r = 0; r < kRows; ++r) {
      rows.x[r] = Row(tile.input_forward, tile, row + r);
      rows.dy[r] = Row(tile.output_delta, tile, row + r);
      rows.mean[r] = Vector::Of(centres[r].mean);
      rows.residual_or_scale[r] =
          Vector::Of(kHasStatistics ? centres[r].scale : centres[r].residual);
    }
    std::size_t i = 0;
    for (; i + Vector::kSize <= tile.num_columns; i += Vector::kSize) {
      AddProducts<kHasStatistics>(rows, gamma, i, Whole{});
    }
    if (i < tile.num_columns) {
      AddProducts<kHasStatistics>(rows, gamma, i, First{tile.num_columns - i});
    }
    double squares[4] = {};
    double g[4];
    double products[4];
    if constexpr (!kHasStatistics) SumLanes(rows.squares, squares);
    SumLanes(rows.g, g);
    SumLanes(rows.products, products);
    for (std::size_t r = 0; r < kRows; ++r) {
      sums[r] = {squares[r], g[r], products[r]};
    }
  }

  template <bool kHasStatistics, std::size_t kRows, typename Part>
  static LNBP_INLINE void AddProducts(Products<kRows>& rows, const C* gamma,
                                      std::size_t i, Part part) {
    const Vector scale = Columns::Load(gamma + i, part);
    for (std::size_t r = 0; r < kRows; ++r) {
      const Vector centred = Elements::Load(rows.x[r] + i, part) - rows.mean[r];
      const Vector d =
          Keep(kHasStatistics ? centred * rows.residual_or_scale[r]
                              : centred - rows.residual_or_scale[r],
               part);
      const Vector g = Elements::Load(rows.dy[r] + i, part) * scale;
      if constexpr (!kHasStatistics) {
        rows.squares[r] = MulAdd(d, d, rows.squares[r]);
      }
      rows.g[r] = rows.g[r] + g;
      rows.products[r] = MulAdd(g, d, rows.products[r]);
    }
  }

  // ---- apply

  static void Apply(const Tile& tile, const RowFactors<C>* factors,
                    const C* gamma, bool has_statistics, const Output<C>& to) {
    const bool has_sums = to.gamma_sums != nullptr;
    if (has_statistics && has_sums) {
      ApplyToAll<true, true>(tile, factors, gamma, to);
    } else if (has_statistics) {
      ApplyToAll<true, false>(tile, factors, gamma, to);
    } else if (has_sums) {
      ApplyToAll<false, true>(tile, factors, gamma, to);
    } else {
      ApplyToAll<false, false>(tile, factors, gamma, to);
    }
    if (to.past_cache) _mm_sfence();
  }

  template <bool kHasStatistics, bool kHasSums>
  static LNBP_INLINE void ApplyToAll(const Tile& tile,
                                     const RowFactors<C>* factors,
                                     const C* gamma, const Output<C>& to) {
    std::size_t row = 0;
    if (SharesColumns(tile, to)) {
      for (; row + 4 <= tile.num_rows; row += 4) {
        ApplyTo<kHasStatistics, kHasSums, 4>(tile, row, factors + row, gamma,
                                             to);
      }
    }
    for (; row < tile.num_rows; ++row) {
      ApplyTo<kHasStatistics, kHasSums, 1>(tile, row, factors + row, gamma, to);
    }
  }

  // Whether `apply` writes to four rows in turns. They share gamma and the sums
  // then (1.1 x at 65536 x 64), but stores past the cache want one row after
  // the other: 1.15 x at 8192 x 1024, with AVX2 1.4 x. For half types the
  // permutations that are shared count for more, for long rows the sums, which
  // do not stay in the first cache.
  static LNBP_INLINE bool SharesColumns(const Tile& tile, const Output<C>& to) {
    if (!to.past_cache) return true;
    // Their lines would begin at different columns.
    if (tile.row_stride * sizeof(T) % kLine != 0) return false;
    return sizeof(T) == 2 || tile.row_stride <= 128 ||
           tile.row_stride > kMaxTileColumns;
  }

  template <std::size_t kRows>
  struct Applied {
    const T* x[kRows];
    const T* dy[kRows];
    T* dx[kRows];
    Vector mean[kRows];
    Vector residual[kRows];
    Vector rstd[kRows];
    Vector slope[kRows];
    Vector offset[kRows];
  };

  template <bool kHasStatistics, bool kHasSums, std::size_t kRows>
  static LNBP_INLINE void ApplyTo(const Tile& tile, std::size_t row,
                                  const RowFactors<C>* factors, const C* gamma,
                                  const Output<C>& to) {
    Applied<kRows> rows;
    for (std::size_t r = 0; r < kRows; ++r) {
      rows.x[r] = Row(tile.input_forward, tile, row + r);
      rows.dy[r] = Row(tile.output_delta, tile, row + r);
      rows.dx[r] =
          static_cast<T*>(to.input_delta) + (row + r) * tile.row_stride;
      rows.mean[r] = Vector::Of(factors[r].mean);
      rows.residual[r] = Vector::Of(factors[r].residual);
      rows.rstd[r] = Vector::Of(factors[r].rstd);
      rows.slope[r] = Vector::Of(-factors[r].rstd * factors[r].mean_products);
      rows.offset[r] = Vector::Of(-factors[r].rstd * factors[r].mean_g);
    }
    std::size_t i = 0;
    if (to.past_cache) {
      const std::size_t head = ColumnsToBoundary(rows.dx[0], tile.num_columns);
      if (head != 0) {
        ApplyAt<kHasStatistics, kHasSums, false>(rows, tile, gamma, to, 0,
                                                 First{head});
      }
      for (i = head; i + Vector::kSize <= tile.num_columns;
           i += Vector::kSize) {
        ApplyAt<kHasStatistics, kHasSums, true>(rows, tile, gamma, to, i,
                                                Whole{});
      }
    } else {
      for (; i + Vector::kSize <= tile.num_columns; i += Vector::kSize) {
        ApplyAt<kHasStatistics, kHasSums, false>(rows, tile, gamma, to, i,
                                                 Whole{});
      }
    }
    if (i < tile.num_columns) {
      ApplyAt<kHasStatistics, kHasSums, false>(rows, tile, gamma, to, i,
                                               First{tile.num_columns - i});
    }
  }

  template <bool kHasStatistics, bool kHasSums, bool kPastCache,
            std::size_t kRows, typename Part>
  static LNBP_INLINE void ApplyAt(const Applied<kRows>& rows, const Tile& tile,
                                  const C* gamma, const Output<C>& to,
                                  std::size_t i, Part part) {
    const Vector scale = Columns::Load(gamma + i, part);
    Vector gamma_sums;
    Vector beta_sums;
    if constexpr (kHasSums) {
      gamma_sums = Columns::Load(to.gamma_sums + i, part);
      beta_sums = Columns::Load(to.beta_sums + i, part);
    }
    for (std::size_t r = 0; r < kRows; ++r) {
      if (tile.rows_ahead != 0) {
        Prefetch(rows.x[r] + i, tile);
        Prefetch(rows.dy[r] + i, tile);
      }
      const Vector x = Elements::Load(rows.x[r] + i, part);
      const Vector dy = Elements::Load(rows.dy[r] + i, part);
      Vector d = x - rows.mean[r];
      if constexpr (!kHasStatistics) d = d - rows.residual[r];
      const Vector xhat = d * rows.rstd[r];
      if constexpr (kHasSums) {
        gamma_sums = MulAdd(dy, xhat, gamma_sums);
        beta_sums = beta_sums + dy;
      }
      // rstd * g - rstd * (mean_g + xhat * mean_products)
      const Vector dx = MulAdd(dy * scale, rows.rstd[r],
                               MulAdd(xhat, rows.slope[r], rows.offset[r]));
      if constexpr (kPastCache) {
        Elements::Stream(rows.dx[r] + i, dx);
      } else {
        Elements::Store(rows.dx[r] + i, dx, part);
      }
    }
    if constexpr (kHasSums) {
      Columns::Store(to.gamma_sums + i, gamma_sums, part);
      Columns::Store(to.beta_sums + i, beta_sums, part);
    }
  }

  // ---- shared

  static LNBP_INLINE const T* Row(const void* tensor, const Tile& tile,
                                  std::size_t row) {
    return static_cast<const T*>(tensor) + row * tile.row_stride;
  }

  static LNBP_INLINE Vector Keep(Vector v, Whole) { return v; }
  static LNBP_INLINE Vector Keep(Vector v, First part) {
    return Columns::Keep(v, part);
  }

  // Up to where stores past the cache may begin; less than a vector.
  static LNBP_INLINE std::size_t ColumnsToBoundary(const T* row,
                                                   std::size_t num_columns) {
    constexpr std::size_t kBytes = Vector::kSize * sizeof(T);
    constexpr std::size_t kBoundary = kBytes < kLine ? kBytes : kLine;
    const std::size_t past = reinterpret_cast<std::uintptr_t>(row) % kBoundary;
    const std::size_t columns = (kBoundary - past) % kBoundary / sizeof(T);
    return columns < num_columns ? columns : num_columns;
  }

  // An address past the end of a tensor does no harm here.
  static LNBP_INLINE void Prefetch(const T* from, const Tile& tile) {
    const auto address = reinterpret_cast<std::uintptr_t>(from) +
                         tile.rows_ahead * tile.row_stride * sizeof(T);
    for (std::size_t line = 0; line < Vector::kSize * sizeof(T);
         line += kLine) {
      _mm_prefetch(reinterpret_cast<const char*>(address + line), _MM_HINT_T0);
    }
  }
};

}  // namespace lnbp

#endif  // LNBP_ONNX_SIMD_ROW_FUNCTIONS_H_
