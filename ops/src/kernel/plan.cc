// SPDX-License-Identifier: Apache-2.0

#include "plan.h"

#include <algorithm>

// What the choices here gained is in docs/tuning.md.

namespace lnbp {
namespace {

// Each block keeps sums of its own for the parameter gradients: enough blocks
// for the threads of a large machine, and no more. Their number is a power of
// two, which two, four or eight threads share evenly.
constexpr std::size_t kMaxBlocks = 64;
// What a block must at least hold for a thread to be worth waking, and for its
// sums to be small beside its rows.
constexpr std::size_t kMinBlockElements = std::size_t{16} * 1024;
constexpr std::size_t kMinBlockRows = 16;
// Short rows are summed several at a time before any of them is written, since
// the writing waits for the sums.
constexpr std::size_t kGroupBytes = 1024;
// For half types four rows at once pay on every shape, by what they share of
// the conversions; for the others two. But longer rows that come from memory
// are better read one by one.
constexpr std::size_t kRowsAtOnce = 4;
constexpr std::size_t kFewRowsAtOnce = 2;
constexpr std::size_t kMinBytesAlone = std::size_t{2} * 1024;
// How far ahead to ask for memory. The processor foresees longer rows, except
// those of half types, which it reads more slowly.
constexpr std::size_t kBytesAhead = std::size_t{8} * 1024;
// Where a row is summed while input_delta is written for one before, waiting
// for memory and computing overlap. That does not pay for what lies in the
// second-level cache, nor for rows of a few vectors, whose sums are better made
// together, above all where the statistics are computed: in steps that wait for
// each other.
constexpr std::size_t kMinBytesToSumAhead = std::size_t{1024} * 1024;
constexpr std::size_t kMinRowBytesToSumAhead = 256;
constexpr std::size_t kMinRowBytesToComputeAhead = 512;
constexpr std::size_t kMinColumnsToCut = 4 * kMaxTileColumns;

std::size_t CeilDivide(std::size_t a, std::size_t b) {
  return a / b + (a % b != 0 ? 1 : 0);
}

std::size_t FloorPowerOfTwo(std::size_t n) {
  std::size_t power = 1;
  while (power <= n / 2) power *= 2;
  return power;
}

std::size_t RowsAtOnce(std::size_t row_bytes, bool is_half, bool past_cache) {
  if (is_half) return kRowsAtOnce;
  const bool are_read_alone =
      past_cache && row_bytes >= kMinBytesAlone && row_bytes <= kBytesAhead;
  return are_read_alone ? 1 : kFewRowsAtOnce;
}

}  // namespace

Plan MakePlan(std::size_t num_rows, std::size_t norm_size,
              std::size_t element_size, bool has_statistics, bool past_cache) {
  Plan plan{};
  plan.by_columns = num_rows <= kMaxTileRows && norm_size >= kMinColumnsToCut;
  const std::size_t min_rows =
      std::max(kMinBlockRows, CeilDivide(kMinBlockElements, norm_size));
  const std::size_t blocks = FloorPowerOfTwo(
      std::clamp<std::size_t>(num_rows / min_rows, 1, kMaxBlocks));
  plan.block_rows = CeilDivide(num_rows, blocks * kRowsAtOnce) * kRowsAtOnce;
  plan.num_blocks = CeilDivide(num_rows, plan.block_rows);
  const std::size_t row_bytes = element_size * norm_size;
  const bool is_half = element_size == 2;
  plan.group_rows =
      std::clamp(kGroupBytes / row_bytes,
                 RowsAtOnce(row_bytes, is_half, past_cache), kMaxTileRows);
  if (plan.group_rows > kRowsAtOnce) {
    plan.group_rows -= plan.group_rows % kRowsAtOnce;
  }
  if (!plan.by_columns && (is_half || row_bytes <= kBytesAhead)) {
    plan.rows_ahead = std::max(kBytesAhead / row_bytes, plan.group_rows);
  }
  const std::size_t min_row_bytes =
      has_statistics ? kMinRowBytesToSumAhead : kMinRowBytesToComputeAhead;
  if (!plan.by_columns && row_bytes >= min_row_bytes &&
      num_rows * row_bytes >= kMinBytesToSumAhead) {
    plan.rows_summed_ahead = std::max<std::size_t>(kGroupBytes / row_bytes, 1);
  }
  plan.num_tiles = CeilDivide(norm_size, kMaxTileColumns);
  return plan;
}

}  // namespace lnbp
