// SPDX-License-Identifier: Apache-2.0
//
// The Steps for any instruction set, of which `Isa` says
//
//     Elements<T>: how elements of T are read and written (see PairElements)
//     kRowsAtOnce, kSumsAhead: as Steps have them
//     Prefetch(address), of memory that will be read
//     StreamLine(to, from), 64 bytes past the cache, to the beginning of a line
//     FinishStores(): what was stored past the cache is there for other threads
//
// The rows of a group share what is read of gamma and of the sums over rows,
// and the lanes of their own sums are added up together. The columns are taken
// a step at a time, a vector or as many as fill a line; of the last vector only
// the First columns may be there.
//
// A pointer to an element may have any address: it is only handed to loads and
// stores that take any.

#ifndef LNBP_ONNX_SIMD_STEPS_H_
#define LNBP_ONNX_SIMD_STEPS_H_

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "converted_steps.h"
#include "element_types.h"
#include "inline.h"
#include "pair.h"
#include "row_functions.h"
#include "row_steps.h"
#include "stage.h"

namespace lnbp {

template <typename T, typename Isa>
class SimdSteps {
  using C = ComputeType<T>;
  using Elements = typename Isa::template Elements<T>;
  using Vector = typename Elements::Vector;
  using Uniform = typename Vector::Uniform;
  using Columns = typename Elements::Columns;
  using Tile = lnbp::Tile<C>;
  using RowValues = lnbp::RowValues<C>;

 public:
  static constexpr std::size_t kRowsAtOnce = Isa::kRowsAtOnce;
  static constexpr bool kSumsAhead = Isa::kSumsAhead;

  template <std::size_t kMaxBytes>
  using StageOf = lnbp::Stage<Isa, kMaxBytes>;
  using Stage = StageOf<kRowsAtOnce * kStagedRowBytes>;

  template <std::size_t kRows>
  static LNBP_INLINE void SumInput(const Tile& tile, std::size_t row,
                                   const C* means, double* sums) {
    const Rows<kRows> rows(tile, row, means);
    Vector sum[4];
    for (std::size_t r = 0; r < 4; ++r) sum[r] = Vector::Zeros();
    std::size_t i = 0;
    for (; i + Vector::kSize <= tile.num_columns; i += Vector::kSize) {
      LNBP_UNROLL
      for (std::size_t r = 0; r < kRows; ++r) {
        sum[r] = sum[r] + rows.Centred(r, i, Whole{});
      }
    }
    if (i < tile.num_columns) {
      const First part{tile.num_columns - i};
      for (std::size_t r = 0; r < kRows; ++r) {
        sum[r] = sum[r] + Keep(rows.Centred(r, i, part), part);
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
      SumAll(tile, row, values, sums);
    } else {
      SumProductsOf<false>(tile, row, values, sums);
    }
  }

  template <std::size_t kRows>
  static LNBP_INLINE void Apply(const Tile& tile, std::size_t row,
                                const RowValues& values, Stage& stage) {
    T* const to = InputDelta(tile, row);
    if (tile.past_cache) {
      ApplyPastCache<kRows>(tile, row, values, to, stage);
    } else {
      ApplyTo<To::kMemory, kRows>(tile, row, values, 0, tile.num_columns, to);
    }
  }

  // Apply of one row, and SumProducts of another.
  static LNBP_INLINE void ApplyAndSum(const Tile& tile, std::size_t row,
                                      std::size_t row_to_sum,
                                      const RowValues& values, Stage& stage,
                                      RowSums<1>& sums) {
    if (values.has_residual) {
      ApplyAndSumOf<true>(tile, row, row_to_sum, values, stage, sums);
    } else {
      ApplyAndSumOf<false>(tile, row, row_to_sum, values, stage, sums);
    }
  }

  static LNBP_INLINE void Prefetch(const void* address) {
    Isa::Prefetch(address);
  }
  static void FinishStores() { Isa::FinishStores(); }

 private:
  static constexpr std::size_t kLine = 64;
  static constexpr std::size_t kVectorBytes = Vector::kSize * sizeof(T);
  // The columns of a step fill a line.
  static constexpr std::size_t kVectors =
      kVectorBytes < kLine ? kLine / kVectorBytes : 1;
  static constexpr std::size_t kStep = kVectors * Vector::kSize;
  static_assert(Vector::kSize <= kColumnsBeyond);
  // A row on the stage, and a vector beyond it.
  static_assert(kStagedRowBytes + kVectorBytes <=
                kRowsAtOnce * kStagedRowBytes);

  // What is read of the tensors, for kRows rows from `row` on.
  template <std::size_t kRows>
  class Rows {
   public:
    LNBP_INLINE Rows(const Tile& tile, std::size_t row, const C* means)
        : x_(At(tile.input_forward, tile, row)),
          dy_(At(tile.output_delta, tile, row)),
          gamma_(tile.gamma),
          stride_(tile.row_stride),
          ahead_(tile.rows_ahead * tile.row_stride) {
      for (std::size_t r = 0; r < kRows; ++r) {
        minus_mean_[r] = Uniform::Of(-means[row + r]);
      }
    }

    template <typename Part>
    LNBP_INLINE Vector Centred(std::size_t r, std::size_t i, Part part) const {
      return Elements::Load(x_ + r * stride_ + i, part) + minus_mean_[r];
    }
    template <typename Part>
    LNBP_INLINE Vector Delta(std::size_t r, std::size_t i, Part part) const {
      return Elements::Load(dy_ + r * stride_ + i, part);
    }
    template <typename Part>
    LNBP_INLINE Vector Gamma(std::size_t i, Part part) const {
      return Columns::Load(gamma_ + i, part);
    }

    LNBP_INLINE void AskForInput(std::size_t i) const { AskFor(x_ + i); }
    LNBP_INLINE void AskForDelta(std::size_t i) const { AskFor(dy_ + i); }

   private:
    static LNBP_INLINE const T* At(const void* tensor, const Tile& tile,
                                   std::size_t row) {
      return static_cast<const T*>(tensor) + row * tile.row_stride;
    }

    // An address past the end of a tensor does no harm here, nor that of what
    // is read at once: to leave it out would take a second copy of the loops.
    LNBP_INLINE void AskFor(const T* from) const {
      for (std::size_t r = 0; r < kRows; ++r) {
        const auto address =
            reinterpret_cast<std::uintptr_t>(from + r * stride_) +
            ahead_ * sizeof(T);
        for (std::size_t line = 0; line < kStep * sizeof(T); line += kLine) {
          Isa::Prefetch(reinterpret_cast<const void*>(address + line));
        }
      }
    }

    const T* const x_;
    const T* const dy_;
    const C* const gamma_;
    const std::size_t stride_;
    const std::size_t ahead_;
    Uniform minus_mean_[kRows];
  };

  // SumProducts, a vector of columns at a time.
  template <bool kHasResidual, std::size_t kRows>
  class Summation {
   public:
    LNBP_INLINE Summation(const Tile& tile, std::size_t row,
                          const RowValues& values)
        : rows_(tile, row, values.mean) {
      for (std::size_t j = 0; j < kPadded; ++j) vectors_[j] = Vector::Zeros();
      if constexpr (kHasResidual) {
        for (std::size_t r = 0; r < kRows; ++r) {
          minus_residual_[r] = Uniform::Of(-values.residual[row + r]);
        }
      }
    }

    LNBP_INLINE const Rows<kRows>& rows() const { return rows_; }

    LNBP_INLINE void AddStep(std::size_t i) {
      LNBP_UNROLL
      for (std::size_t v = 0; v < kVectors; ++v) {
        Add(i + v * Vector::kSize, Whole{});
      }
    }
    LNBP_INLINE void AddPart(std::size_t begin, std::size_t end) {
      ForParts(begin, end, [this](std::size_t i, auto part) LNBP_INLINE_LAMBDA {
        Add(i, part);
      });
    }

    template <typename Part>
    LNBP_INLINE void Add(std::size_t i, Part part) {
      const Vector gamma = rows_.Gamma(i, part);
      LNBP_UNROLL
      for (std::size_t r = 0; r < kRows; ++r) {
        Vector d = rows_.Centred(r, i, part);
        if constexpr (kHasResidual) {
          vectors_[2 * kRows + r] = vectors_[2 * kRows + r] + Keep(d, part);
          d = d + minus_residual_[r];
        }
        d = Keep(d, part);
        const Vector g = rows_.Delta(r, i, part) * gamma;
        vectors_[r] = vectors_[r] + g;
        vectors_[kRows + r] = MulAdd(g, d, vectors_[kRows + r]);
        if constexpr (kHasResidual) {
          vectors_[3 * kRows + r] = MulAdd(d, d, vectors_[3 * kRows + r]);
        }
      }
    }

    LNBP_INLINE void AddUp(RowSums<kRows>& sums) const {
      double totals[kPadded];
      for (std::size_t j = 0; j < kPadded; j += 4) {
        SumLanes(vectors_ + j, totals + j);
      }
      for (std::size_t r = 0; r < kRows; ++r) {
        sums.g[r] = totals[r];
        sums.products[r] = totals[kRows + r];
        sums.centred[r] = sums.squares[r] = 0;
        if constexpr (kHasResidual) {
          sums.centred[r] = totals[2 * kRows + r];
          sums.squares[r] = totals[3 * kRows + r];
        }
      }
    }

   private:
    static constexpr std::size_t kCount = (kHasResidual ? 4 : 2) * kRows;
    static constexpr std::size_t kPadded = (kCount + 3) / 4 * 4;

    const Rows<kRows> rows_;
    Uniform minus_residual_[kRows];
    // Of every row its g, of every row its products, then of those with
    // residuals what is centred, and its squares.
    Vector vectors_[kPadded];
  };

  // Where input_delta is written.
  enum class To {
    kMemory,
    kLines,  // past the cache
    kStage,  // past the cache later; whole vectors may be written
  };

  // Apply, a vector of columns at a time. `to` is where the column `begin` of
  // the first row is written to.
  template <To kTo, std::size_t kRows>
  class Application {
   public:
    LNBP_INLINE Application(const Tile& tile, std::size_t row,
                            const RowValues& values, std::size_t begin, T* to)
        : rows_(tile, row, values.mean),
          begin_(begin),
          to_(to),
          gamma_sums_(tile.gamma_sums),
          beta_sums_(tile.beta_sums),
          stride_(tile.row_stride) {
      for (std::size_t r = 0; r < kRows; ++r) {
        rstd_[r] = Uniform::Of(values.rstd[row + r]);
        shift_[r] = Uniform::Of(values.shift[row + r]);
        slope_[r] = Uniform::Of(values.slope[row + r]);
        offset_[r] = Uniform::Of(values.offset[row + r]);
      }
    }

    LNBP_INLINE const Rows<kRows>& rows() const { return rows_; }

    LNBP_INLINE void ApplyStep(std::size_t i) const {
      static_assert(kTo != To::kLines || kVectors == 1 || kRows == 1);
      Vector deltas[kVectors][kRows];
      LNBP_UNROLL
      for (std::size_t v = 0; v < kVectors; ++v) {
        Compute(i + v * Vector::kSize, Whole{}, deltas[v]);
        if constexpr (kTo != To::kLines) {
          Store(i + v * Vector::kSize, Whole{}, deltas[v]);
        }
      }
      if constexpr (kTo == To::kLines) {
        // One right after the other, so that each line is filled at once.
        LNBP_UNROLL
        for (std::size_t v = 0; v < kVectors; ++v) {
          for (std::size_t r = 0; r < kRows; ++r) {
            Elements::Stream(At(r, i + v * Vector::kSize), deltas[v][r]);
          }
        }
      }
    }
    LNBP_INLINE void ApplyPart(std::size_t begin, std::size_t end) const {
      ForParts(begin, end, [this](std::size_t i, auto part) LNBP_INLINE_LAMBDA {
        Vector deltas[kRows];
        Compute(i, part, deltas);
        if constexpr (kTo == To::kStage) {
          Store(i, Whole{}, deltas);
        } else {
          Store(i, part, deltas);
        }
      });
    }

   private:
    template <typename Part>
    LNBP_INLINE void Compute(std::size_t i, Part part, Vector* deltas) const {
      const Vector gamma = rows_.Gamma(i, part);
      Vector gamma_sum = Columns::Load(gamma_sums_ + i, Whole{});
      Vector beta_sum = Columns::Load(beta_sums_ + i, Whole{});
      LNBP_UNROLL
      for (std::size_t r = 0; r < kRows; ++r) {
        // Where there is no element, 0 is added to the sums.
        const Vector xhat =
            Keep(MulAdd(rows_.Centred(r, i, part), rstd_[r], shift_[r]), part);
        const Vector delta = rows_.Delta(r, i, part);
        gamma_sum = MulAdd(delta, xhat, gamma_sum);
        beta_sum = beta_sum + delta;
        deltas[r] = MulAdd(delta * gamma, rstd_[r],
                           MulAdd(xhat, slope_[r], offset_[r]));
      }
      Columns::Store(gamma_sums_ + i, gamma_sum, Whole{});
      Columns::Store(beta_sums_ + i, beta_sum, Whole{});
    }

    template <typename Part>
    LNBP_INLINE void Store(std::size_t i, Part part,
                           const Vector* deltas) const {
      LNBP_UNROLL
      for (std::size_t r = 0; r < kRows; ++r) {
        Elements::Store(At(r, i), deltas[r], part);
      }
    }

    LNBP_INLINE T* At(std::size_t r, std::size_t i) const {
      return to_ + r * stride_ + (i - begin_);
    }

    const Rows<kRows> rows_;
    const std::size_t begin_;
    T* const to_;
    C* const gamma_sums_;
    C* const beta_sums_;
    const std::size_t stride_;
    Uniform rstd_[kRows];
    Uniform shift_[kRows];
    Uniform slope_[kRows];
    Uniform offset_[kRows];
  };

  template <bool kHasResidual, std::size_t kRows>
  static LNBP_INLINE void SumProductsOf(const Tile& tile, std::size_t row,
                                        const RowValues& values,
                                        RowSums<kRows>& sums) {
    Summation<kHasResidual, kRows> summation(tile, row, values);
    const std::size_t num_columns = tile.num_columns;
    std::size_t i = 0;
    for (; i + kStep <= num_columns; i += kStep) {
      summation.rows().AskForInput(i);
      summation.AddStep(i);
    }
    summation.AddPart(i, num_columns);
    summation.AddUp(sums);
  }

  // With residuals: half as many rows at once, for all sums to be in registers.
  template <std::size_t kRows>
  static LNBP_INLINE void SumAll(const Tile& tile, std::size_t row,
                                 const RowValues& values,
                                 RowSums<kRows>& sums) {
    constexpr std::size_t kAtOnce =
        kRows < kRowsAtOnce ? kRows : kRowsAtOnce / 2;
    for (std::size_t begin = 0; begin < kRows; begin += kAtOnce) {
      RowSums<kAtOnce> some;
      SumAllAtOnce(tile, row + begin, values, some);
      sums.Set(some, begin);
    }
  }

  template <std::size_t kRows>
  static LNBP_INLINE void SumAllAtOnce(const Tile& tile, std::size_t row,
                                       const RowValues& values,
                                       RowSums<kRows>& sums) {
    SumProductsOf<true>(tile, row, values, sums);
  }

  // Apply, of the columns from `begin` to `end`; past the cache they are whole
  // steps, and `to` is the beginning of a line.
  template <To kTo, std::size_t kRows>
  static void ApplyTo(const Tile& tile, std::size_t row,
                      const RowValues& values, std::size_t begin,
                      std::size_t end, T* to) {
    if (begin == end) return;
    const Application<kTo, kRows> application(tile, row, values, begin, to);
    std::size_t i = begin;
    for (; i + kStep <= end; i += kStep) {
      application.rows().AskForDelta(i);
      application.ApplyStep(i);
    }
    if constexpr (kTo != To::kLines) application.ApplyPart(i, end);
  }

  template <std::size_t kRows>
  static void ApplyPastCache(const Tile& tile, std::size_t row,
                             const RowValues& values, T* to, Stage& stage) {
    const std::size_t num_columns = tile.num_columns;
    if (IsStaged(tile, to) && (kRows == 1 || num_columns == tile.row_stride)) {
      return ApplyToStage<kRows>(tile, row, values, 0, num_columns, to, stage);
    }
    // Where a line takes several vectors, or the lines of the rows begin at
    // different columns, one row at a time; that also puts the ends of rows
    // together.
    if constexpr (kRows > 1 && kVectors == 1) {
      if (IsAtLine(to) && tile.row_stride * sizeof(T) % kLine == 0) {
        const Lines lines(to, num_columns);
        ApplyTo<To::kLines, kRows>(tile, row, values, 0, lines.end, to);
        return ApplyTo<To::kMemory, kRows>(tile, row, values, lines.end,
                                           num_columns, to + lines.end);
      }
    }
    for (std::size_t r = 0; r < kRows; ++r) {
      T* const row_to = to + r * tile.row_stride;
      const Lines lines(row_to, num_columns);
      ApplyToStage<1>(tile, row + r, values, 0, lines.begin, row_to, stage);
      ApplyTo<To::kLines, 1>(tile, row + r, values, lines.begin, lines.end,
                             row_to + lines.begin);
      ApplyToStage<1>(tile, row + r, values, lines.end, num_columns, row_to,
                      stage);
    }
  }

  // ApplyTo by way of the stage; `to` is the place of column 0.
  template <std::size_t kRows>
  static void ApplyToStage(const Tile& tile, std::size_t row,
                           const RowValues& values, std::size_t begin,
                           std::size_t end, T* to, Stage& stage) {
    if (begin == end) return;
    // What is written beyond a row would be in the next one.
    constexpr To kTo = kRows == 1 ? To::kStage : To::kMemory;
    ApplyTo<kTo, kRows>(tile, row, values, begin, end,
                        static_cast<T*>(stage.At(to + begin)));
    stage.Add(kRows * (end - begin) * sizeof(T));
  }

  template <bool kHasResidual>
  static LNBP_INLINE void ApplyAndSumOf(const Tile& tile, std::size_t row,
                                        std::size_t row_to_sum,
                                        const RowValues& values, Stage& stage,
                                        RowSums<1>& sums) {
    T* const to = InputDelta(tile, row);
    const std::size_t num_columns = tile.num_columns;
    if (!tile.past_cache) {
      ApplyToAndSum<kHasResidual, To::kMemory>(tile, row, row_to_sum, values, 0,
                                               num_columns, to, sums);
    } else if (IsStaged(tile, to)) {
      ApplyToAndSum<kHasResidual, To::kStage>(
          tile, row, row_to_sum, values, 0, num_columns,
          static_cast<T*>(stage.At(to)), sums);
      stage.Add(num_columns * sizeof(T));
    } else {
      const Lines lines(to, num_columns);
      ApplyToStage<1>(tile, row, values, 0, lines.begin, to, stage);
      ApplyToAndSum<kHasResidual, To::kLines>(tile, row, row_to_sum, values,
                                              lines.begin, lines.end,
                                              to + lines.begin, sums);
      ApplyToStage<1>(tile, row, values, lines.end, num_columns, to, stage);
    }
  }

  // ApplyTo, and all sums.
  template <bool kHasResidual, To kTo>
  static void ApplyToAndSum(const Tile& tile, std::size_t row,
                            std::size_t row_to_sum, const RowValues& values,
                            std::size_t begin, std::size_t end, T* to,
                            RowSums<1>& sums) {
    const Application<kTo, 1> application(tile, row, values, begin, to);
    Summation<kHasResidual, 1> summation(tile, row_to_sum, values);
    const std::size_t num_columns = tile.num_columns;
    std::size_t summed = 0;
    // A step ahead, where input_delta begins past a line and all steps but one
    // are written: in rows that lie pages apart, what is stored would otherwise
    // have the place in its page that what is read next has, and the processor
    // holds that back until it knows that the pages are not the same.
    if (end - begin + kStep <= num_columns) {
      summation.AddStep(0);
      summed = kStep;
    }
    std::size_t i = begin;
    for (; i + kStep <= end; i += kStep, summed += kStep) {
      summation.rows().AskForInput(summed);
      summation.rows().AskForDelta(summed);
      summation.AddStep(summed);
      application.ApplyStep(i);
    }
    if constexpr (kTo != To::kLines) application.ApplyPart(i, end);
    summation.AddPart(summed, num_columns);
    summation.AddUp(sums);
  }

  static LNBP_INLINE Vector Keep(Vector v, Whole) { return v; }
  static LNBP_INLINE Vector Keep(Vector v, First part) {
    return Columns::Keep(v, part);
  }

  // Calls function(i, part) for fewer columns than a step.
  template <typename Function>
  static LNBP_INLINE void ForParts(std::size_t begin, std::size_t end,
                                   Function function) {
    std::size_t i = begin;
    if constexpr (kVectors > 1) {
      for (; i + Vector::kSize <= end; i += Vector::kSize) {
        function(i, Whole{});
      }
    }
    if (i < end) function(i, First{end - i});
  }

  static LNBP_INLINE T* InputDelta(const Tile& tile, std::size_t row) {
    return static_cast<T*>(tile.input_delta) + row * tile.row_stride;
  }

  static LNBP_INLINE bool IsAtLine(const T* to) {
    return reinterpret_cast<std::uintptr_t>(to) % kLine == 0;
  }

  static LNBP_INLINE bool IsStaged(const Tile& tile, const T* to) {
    const std::size_t row_bytes = tile.num_columns * sizeof(T);
    return row_bytes <= kStagedRowBytes &&
           (!IsAtLine(to) || row_bytes % kLine != 0);
  }

  // The columns of a row that are whole steps from the beginning of a line on.
  struct Lines {
    LNBP_INLINE Lines(const T* to, std::size_t num_columns) {
      const std::size_t past = reinterpret_cast<std::uintptr_t>(to) % kLine;
      begin = (kLine - past) % kLine / sizeof(T);
      if (begin > num_columns) begin = num_columns;
      end = begin + (num_columns - begin) / kStep * kStep;
    }

    std::size_t begin;
    std::size_t end;
  };
};

// Integers are converted: an instruction set has conversions of its own for the
// floating types alone.
template <typename T, typename Isa, typename C = ComputeType<T>>
using SimdFunctionsOf =
    std::conditional_t<std::is_integral_v<T>,
                       ConvertedFunctionsOf<T, SimdSteps<C, Isa>>,
                       RowFunctionsOf<T, C, SimdSteps<T, Isa>>>;

template <typename T, typename Isa>
constexpr RowFunctions<ComputeType<T>> kSimdFunctions =
    SimdFunctionsOf<T, Isa>::Table();

template <typename Isa>
constexpr FunctionTable SimdFunctions() {
  FunctionTable table;
  for (const ElementType type : kElementTypes) {
    WithElementType(type, [&table, type](auto tag) {
      table.Add(type, &kSimdFunctions<typename decltype(tag)::Type, Isa>);
    });
  }
  return table;
}

}  // namespace lnbp

#endif  // LNBP_ONNX_SIMD_STEPS_H_
