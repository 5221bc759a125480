// SPDX-License-Identifier: Apache-2.0

#ifndef LNBP_ONNX_OPERANDS_H_
#define LNBP_ONNX_OPERANDS_H_

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "conversions.h"
#include "element_types.h"
#include "kernel.h"
#include "parameter_gradient.h"
#include "plan.h"
#include "row_functions.h"
#include "row_values.h"
#include "scratch.h"
#include "variants.h"

namespace lnbp {

inline bool IsAligned(const void* address, std::size_t alignment) {
  return reinterpret_cast<std::uintptr_t>(address) % alignment == 0;
}

// The arguments of a call as the row functions take them, and the functions
// themselves: what ByRows and ByColumns both need. There are elements.
template <typename C>
class Operands {
 public:
  explicit Operands(const Arguments& arguments)
      : num_rows(arguments.num_rows),
        norm_size(arguments.norm_size),
        means{1 / static_cast<double>(norm_size),
              static_cast<double>(arguments.epsilon)},
        functions(FunctionsOf<C>(*arguments.variant, arguments.type)),
        past_cache(IsPastCache(arguments)),
        past_line(BytesPastLine(arguments)),
        plan(MakePlan(num_rows, norm_size, SizeOf(arguments.type),
                      arguments.mean != nullptr, past_cache)),
        gradients{{arguments.parameter_type, arguments.gamma_broadcast,
                   norm_size, arguments.gamma_delta},
                  {arguments.parameter_type, arguments.beta_broadcast,
                   norm_size, arguments.beta_delta}},
        arguments_(arguments),
        element_size_(SizeOf(arguments.type)) {}

  void AddTo(Scratch& scratch) {
    if (NeedsGammaRow()) gamma_row_ = scratch.Add<C>(norm_size, 1, past_line);
    for (auto& gradient : gradients) gradient.AddTo(scratch);
  }

  // Once the memory is there, before the first tile.
  void PrepareGamma() {
    gamma_ = static_cast<const C*>(arguments_.gamma);
    if (!NeedsGammaRow()) return;
    C* const row = gamma_row_.get();
    gamma_ = row;
    if (arguments_.gamma == nullptr) {
      std::fill_n(row, norm_size, C{1});
      return;
    }
    if (arguments_.gamma_broadcast.is_identity()) {
      LoadElements(arguments_.parameter_type, arguments_.gamma, 0, norm_size,
                   row);
      return;
    }
    WithElementType(arguments_.parameter_type, [this, row](auto tag) {
      using P = typename decltype(tag)::Type;
      const void* const gamma = arguments_.gamma;
      arguments_.gamma_broadcast.ForEachColumn(
          norm_size, [=](std::size_t column, std::size_t element) {
            row[column] = ToCompute<C>(LoadElement<P>(gamma, element));
          });
    });
  }

  bool has_statistics() const { return arguments_.mean != nullptr; }

  // The statistics that are given.
  void LoadStatistics(std::size_t row, std::size_t rows,
                      RowValues<C>& values) const {
    values.has_residual = !has_statistics();
    if (!has_statistics()) return;
    LoadElements(arguments_.statistics_type, arguments_.mean, row, rows,
                 values.mean);
    LoadElements(arguments_.statistics_type, arguments_.variance, row, rows,
                 values.variance);
  }

  Tile<C> TileAt(std::size_t row, std::size_t column, std::size_t num_columns,
                 C* gamma_sums, C* beta_sums) const {
    const std::size_t offset = (row * norm_size + column) * element_size_;
    return {
        static_cast<const unsigned char*>(arguments_.input_forward) + offset,
        static_cast<const unsigned char*>(arguments_.output_delta) + offset,
        gamma_ + column,
        norm_size,
        num_columns,
        plan.rows_ahead,
        plan.rows_summed_ahead,
        static_cast<unsigned char*>(arguments_.input_delta) + offset,
        gamma_sums,
        beta_sums,
        past_cache};
  }

  const std::size_t num_rows;
  const std::size_t norm_size;
  const RowMeans means;
  const RowFunctions<C>& functions;
  const bool past_cache;
  // By how much what lies beside the rows should begin past a line.
  const std::size_t past_line;
  const Plan plan;
  ParameterGradient<C> gradients[2];  // gamma's and beta's

 private:
  // Whether input_delta would only drive out of the last-level cache what is
  // still to be read. In place its lines are there already. Between elements
  // that lie across the ends of lines there is no column where stores that fill
  // a line could begin.
  static bool IsPastCache(const Arguments& arguments) {
    const std::size_t element_size = SizeOf(arguments.type);
    const std::size_t row_bytes = 3 * arguments.norm_size * element_size;
    return arguments.cache_bytes != 0 &&
           arguments.num_rows > arguments.cache_bytes / 4 * 3 / row_bytes &&
           arguments.input_delta != arguments.output_delta &&
           arguments.input_delta != arguments.input_forward &&
           (arguments.norm_size * element_size <= kStagedRowBytes ||
            IsAligned(arguments.input_delta, element_size));
  }

  // Where input_delta goes past the cache a line at a time, columns are taken
  // from the beginning of its lines on: there the lines of gamma and of the
  // sums should begin, too.
  std::size_t BytesPastLine(const Arguments& arguments) const {
    constexpr std::size_t kLine = 64;
    const std::size_t size = SizeOf(arguments.type);
    const std::size_t row_bytes = norm_size * size;
    if (!past_cache || row_bytes <= kStagedRowBytes || row_bytes % kLine != 0) {
      return 0;
    }
    const auto address =
        reinterpret_cast<std::uintptr_t>(arguments.input_delta);
    return address % kLine / size * sizeof(C) % kLine;
  }

  // Whether gamma has to be copied for the row functions to read it.
  bool NeedsGammaRow() const {
    const bool is_compute_type =
        WithElementType(arguments_.parameter_type, [](auto tag) {
          return std::is_same_v<typename decltype(tag)::Type, C>;
        });
    return arguments_.gamma == nullptr || !is_compute_type ||
           !arguments_.gamma_broadcast.is_identity() ||
           !IsAligned(arguments_.gamma, alignof(C)) || past_line != 0;
  }

  const Arguments& arguments_;
  const std::size_t element_size_;
  Scratch::Piece<C> gamma_row_;
  const C* gamma_ = nullptr;
};

}  // namespace lnbp

#endif  // LNBP_ONNX_OPERANDS_H_
