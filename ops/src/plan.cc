// SPDX-License-Identifier: Apache-2.0

#include "plan.h"

#include <algorithm>

namespace lnbp {
namespace {

// Each block keeps sums of its own for the parameter gradients: enough blocks
// for the threads of a large machine, and no more.
constexpr std::size_t kMaxBlocks = 64;
// What a block must at least hold for a thread to be worth waking, and for its
// sums to be small beside its rows.
constexpr std::size_t kMinBlockElements = 16 * 1024;
constexpr std::size_t kMinBlockRows = 16;
// Rows of input_forward and output_delta that stay in a core's own cache.
constexpr std::size_t kGroupBytes = 128 * 1024;
constexpr std::size_t kMinColumnsToCut = 4 * kMaxTileColumns;

std::size_t CeilDivide(std::size_t a, std::size_t b) {
  return a / b + (a % b != 0 ? 1 : 0);
}

}  // namespace

Plan MakePlan(std::size_t num_rows, std::size_t norm_size,
              std::size_t element_size) {
  Plan plan{};
  plan.by_columns = num_rows <= kMaxTileRows && norm_size >= kMinColumnsToCut;
  plan.block_rows = std::max({CeilDivide(num_rows, kMaxBlocks), kMinBlockRows,
                              CeilDivide(kMinBlockElements, norm_size)});
  plan.num_blocks = CeilDivide(num_rows, plan.block_rows);
  const std::size_t row_bytes = 2 * element_size * norm_size;
  plan.group_rows = std::clamp<std::size_t>(kGroupBytes / row_bytes, 1, 16);
  // Measured gain: 
  plan.rows_ahead = norm_size <= kMaxTileColumns ? plan.group_rows : 0;
  plan.num_tiles = CeilDivide(norm_size, kMaxTileColumns);
  return plan;
}

}  // namespace lnbp
