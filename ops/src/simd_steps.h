// SPDX-License-Identifier: Apache-2.0
//
// The Steps for any instruction set: `Elements` is that of simd_avx2.h or
// simd_avx512.h for the type of the tensors.
//
// The rows of a group share what is read of gamma and of the sums over rows,
// and the lanes of their own sums are added up together. The columns are taken
// a vector at a time; what is left of them makes one vector more, of which only
// the First are there.

#ifndef LNBP_ONNX_SIMD_STEPS_H_
#define LNBP_ONNX_SIMD_STEPS_H_

#include <cstddef>
#include <cstdint>

#include "element_types.h"
#include "row_functions.h"
#include "row_steps.h"
#include "simd.h"

namespace lnbp {

template <typename T, typename Elements>
class SimdSteps {
  using C = ComputeType<T>;
  using Vector = typename Elements::Vector;
  using Uniform = typename Vector::Uniform;
  using Columns = typename Elements::Columns;
  using Tile = lnbp::Tile<C>;
  using RowValues = lnbp::RowValues<C>;

 public:
  static constexpr std::size_t kRowsAtOnce = 4;

  template <std::size_t kRows>
  static LNBP_INLINE void SumInput(const Tile& tile, std::size_t row,
                                   const C* means, double* sums) {
    const T* x = At(tile.input_forward, tile, row);
    Uniform mean[kRows];
    Vector sum[4];
    for (std::size_t r = 0; r < 4; ++r) sum[r] = Vector::Zeros();
    for (std::size_t r = 0; r < kRows; ++r) {
      mean[r] = Uniform::Of(means[row + r]);
    }
    std::size_t i = 0;
    for (; i + Vector::kSize <= tile.num_columns; i += Vector::kSize) {
      LNBP_UNROLL
      for (std::size_t r = 0; r < kRows; ++r) {
        sum[r] =
            sum[r] +
            (Elements::Load(x + r * tile.row_stride + i, Whole{}) - mean[r]);
      }
    }
    if (i < tile.num_columns) {
      const First part{tile.num_columns - i};
      for (std::size_t r = 0; r < kRows; ++r) {
        const Vector d =
            Elements::Load(x + r * tile.row_stride + i, part) - mean[r];
        sum[r] = sum[r] + Columns::Keep(d, part);
      }
    }
    double totals[4];
    SumLanes(sum, totals);
    for (std::size_t r = 0; r < kRows; ++r) sums[r] = totals[r];
  }

  template <std::size_t kRows>
  static LNBP_INLINE void SumProducts(const Tile& tile, std::size_t row,
                                      const RowValues& values,
                                      RowSums<kRows>& sums) {
    if (values.has_residual) {
      SumProductsOf<true>(tile, row, values, sums);
    } else {
      SumProductsOf<false>(tile, row, values, sums);
    }
  }

  template <std::size_t kRows>
  static LNBP_INLINE void Apply(const Tile& tile, std::size_t row,
                                const RowValues& values) {
    if (!tile.past_cache) {
      ApplyTo<false, kRows>(tile, row, values);
    } else if (tile.row_stride * sizeof(T) % kLine == 0) {
      ApplyTo<true, kRows>(tile, row, values);
    } else {
      // The lines of the rows, which stores past the cache have to fill, begin
      // at different columns.
      for (std::size_t r = 0; r < kRows; ++r) {
        ApplyTo<true, 1>(tile, row + r, values);
      }
    }
  }

  static void FinishStores() { _mm_sfence(); }

 private:
  static constexpr std::size_t kLine = 64;

  template <bool kHasResidual, std::size_t kRows>
  static LNBP_INLINE void SumProductsOf(const Tile& tile, std::size_t row,
                                        const RowValues& values,
                                        RowSums<kRows>& sums) {
    // Of every row its g, of every row its products, then its squares.
    constexpr std::size_t kCount = (kHasResidual ? 3 : 2) * kRows;
    constexpr std::size_t kPadded = (kCount + 3) / 4 * 4;
    Vector vectors[kPadded];
    for (std::size_t j = 0; j < kPadded; ++j) vectors[j] = Vector::Zeros();
    Uniform mean[kRows];
    Uniform residual[kRows];
    for (std::size_t r = 0; r < kRows; ++r) {
      mean[r] = Uniform::Of(values.mean[row + r]);
      if constexpr (kHasResidual) {
        residual[r] = Uniform::Of(values.residual[row + r]);
      }
    }
    const T* const x = At(tile.input_forward, tile, row);
    const T* const dy = At(tile.output_delta, tile, row);
    const C* const gammas = tile.gamma;
    const std::size_t stride = tile.row_stride;
    const std::size_t ahead = tile.rows_ahead * stride;
    const auto add_columns = [&](std::size_t i, auto part) LNBP_INLINE_LAMBDA {
      const Vector gamma = Columns::Load(gammas + i, part);
      LNBP_UNROLL
      for (std::size_t r = 0; r < kRows; ++r) {
        const std::size_t at = r * stride + i;
        AskFor(x + at, ahead);
        Vector d = Elements::Load(x + at, part) - mean[r];
        if constexpr (kHasResidual) d = d - residual[r];
        d = Keep(d, part);
        const Vector g = Elements::Load(dy + at, part) * gamma;
        vectors[r] = vectors[r] + g;
        vectors[kRows + r] = MulAdd(g, d, vectors[kRows + r]);
        if constexpr (kHasResidual) {
          vectors[2 * kRows + r] = MulAdd(d, d, vectors[2 * kRows + r]);
        }
      }
    };
    std::size_t i = 0;
    for (; i + Vector::kSize <= tile.num_columns; i += Vector::kSize) {
      add_columns(i, Whole{});
    }
    if (i < tile.num_columns) add_columns(i, First{tile.num_columns - i});
    double totals[kPadded];
    for (std::size_t j = 0; j < kPadded; j += 4) {
      SumLanes(vectors + j, totals + j);
    }
    for (std::size_t r = 0; r < kRows; ++r) {
      sums.g[r] = totals[r];
      sums.products[r] = totals[kRows + r];
      sums.squares[r] = 0;
      if constexpr (kHasResidual) sums.squares[r] = totals[2 * kRows + r];
    }
  }

  template <bool kPastCache, std::size_t kRows>
  static void ApplyTo(const Tile& tile, std::size_t row,
                      const RowValues& values) {
    Uniform mean[kRows];
    Uniform rstd[kRows];
    Uniform shift[kRows];
    Uniform slope[kRows];
    Uniform offset[kRows];
    for (std::size_t r = 0; r < kRows; ++r) {
      mean[r] = Uniform::Of(values.mean[row + r]);
      rstd[r] = Uniform::Of(values.rstd[row + r]);
      shift[r] = Uniform::Of(values.shift[row + r]);
      slope[r] = Uniform::Of(values.slope[row + r]);
      offset[r] = Uniform::Of(values.offset[row + r]);
    }
    const T* const x = At(tile.input_forward, tile, row);
    const T* const dy = At(tile.output_delta, tile, row);
    T* const dx = static_cast<T*>(tile.input_delta) + row * tile.row_stride;
    const C* const gammas = tile.gamma;
    C* const gamma_sums = tile.gamma_sums;
    C* const beta_sums = tile.beta_sums;
    const std::size_t stride = tile.row_stride;
    const std::size_t ahead = tile.rows_ahead * stride;
    const auto apply_to_columns = [&](std::size_t i, auto part,
                                      auto store) LNBP_INLINE_LAMBDA {
      const Vector gamma = Columns::Load(gammas + i, part);
      Vector gamma_sum = Columns::Load(gamma_sums + i, part);
      Vector beta_sum = Columns::Load(beta_sums + i, part);
      LNBP_UNROLL
      for (std::size_t r = 0; r < kRows; ++r) {
        const std::size_t at = r * stride + i;
        AskFor(dy + at, ahead);
        const Vector xhat =
            MulAdd(Elements::Load(x + at, part) - mean[r], rstd[r], shift[r]);
        const Vector delta = Elements::Load(dy + at, part);
        gamma_sum = MulAdd(delta, xhat, gamma_sum);
        beta_sum = beta_sum + delta;
        store(dx + at, MulAdd(delta * gamma, rstd[r],
                              MulAdd(xhat, slope[r], offset[r])));
      }
      Columns::Store(gamma_sums + i, gamma_sum, part);
      Columns::Store(beta_sums + i, beta_sum, part);
    };
    const auto stream = [](T* to, Vector v)
                            LNBP_INLINE_LAMBDA { Elements::Stream(to, v); };
    const auto store = [](T* to, Vector v) LNBP_INLINE_LAMBDA {
      Elements::Store(to, v, Whole{});
    };
    const auto apply_to_first = [&](std::size_t i,
                                    std::size_t count) LNBP_INLINE_LAMBDA {
      const First part{count};
      apply_to_columns(i, part, [=](T* to, Vector v) LNBP_INLINE_LAMBDA {
        Elements::Store(to, v, part);
      });
    };
    std::size_t i = 0;
    if constexpr (kPastCache) {
      i = ColumnsToBoundary(dx, tile.num_columns);
      if (i != 0) apply_to_first(0, i);
    }
    for (; i + Vector::kSize <= tile.num_columns; i += Vector::kSize) {
      if constexpr (kPastCache) {
        apply_to_columns(i, Whole{}, stream);
      } else {
        apply_to_columns(i, Whole{}, store);
      }
    }
    if (i < tile.num_columns) apply_to_first(i, tile.num_columns - i);
  }

  static LNBP_INLINE const T* At(const void* tensor, const Tile& tile,
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

  // An address past the end of a tensor does no harm here, nor that of what is
  // read at once: to leave it out would take a second copy of the loops.
  static LNBP_INLINE void AskFor(const T* from, std::size_t ahead) {
    const auto address =
        reinterpret_cast<std::uintptr_t>(from) + ahead * sizeof(T);
    for (std::size_t line = 0; line < Vector::kSize * sizeof(T);
         line += kLine) {
      _mm_prefetch(reinterpret_cast<const char*>(address + line), _MM_HINT_T0);
    }
  }
};

}  // namespace lnbp

#endif  // LNBP_ONNX_SIMD_STEPS_H_
