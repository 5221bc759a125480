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
// Rows of input_forward and output_delta that stay in a core's first cache:
// with groups of 128 KB, 4096 x 768 of bfloat16 takes 1.4 x as long. Four rows
// stay together even so, in the second cache: 1.3 x at 512 x 16384 of bfloat16.
constexpr std::size_t kGroupBytes = 32 * 1024;
constexpr std::size_t kFewRowsBytes = 512 * 1024;
constexpr std::size_t kFewRows = 4;
constexpr std::size_t kMaxGroupRows = 32;
// Asking early for the next rows: 1.4 x at 65536 x 64, 1.2 x at 4096 x 768,
// 1.3 x at 2048 x 4096 of bfloat16. Longer rows the processor foresees, and
// then it costs: 0.9 x at 512 x 16384.
constexpr std::size_t kMaxBytesToAskEarly = 16 * 1024;
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
  plan.block_rows = CeilDivide(plan.block_rows, kFewRows) * kFewRows;
  plan.num_blocks = CeilDivide(num_rows, plan.block_rows);
  const std::size_t row_bytes = 2 * element_size * norm_size;
  plan.group_rows = std::clamp<std::size_t>(
      std::max(kGroupBytes / row_bytes,
               std::min(kFewRowsBytes / row_bytes, kFewRows)),
      1, kMaxGroupRows);
  if (plan.group_rows > kFewRows) plan.group_rows -= plan.group_rows % kFewRows;
  plan.rows_ahead = row_bytes <= kMaxBytesToAskEarly ? plan.group_rows : 0;
  plan.num_tiles = CeilDivide(norm_size, kMaxTileColumns);
  return plan;
}

}  // namespace lnbp
