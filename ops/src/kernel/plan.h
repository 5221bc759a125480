// SPDX-License-Identifier: Apache-2.0
//
// How the work is cut into tasks. It follows from the sizes alone, never from
// the number of threads: sums run over the same elements in the same order
// whoever computes them.

#ifndef LNBP_ONNX_PLAN_H_
#define LNBP_ONNX_PLAN_H_

#include <cstddef>

#include "row_functions.h"

namespace lnbp {

struct Plan {
  // A task has whole rows, or (few and long rows) a tile of columns of all
  // rows.
  bool by_columns;
  // By rows: rows of a task; the last one may have fewer.
  std::size_t block_rows;
  std::size_t num_blocks;
  // What whole_rows and Tile have of these names.
  std::size_t group_rows;
  std::size_t rows_ahead;
  std::size_t rows_summed_ahead;
  // Tiles of kMaxTileColumns columns; the last one may have fewer.
  std::size_t num_tiles;

  // Whether the rows of a task are more than one sum may run over.
  bool has_many_tiles() const { return block_rows > kMaxTileRows; }
};

// `past_cache` is that of Tile. No sum depends on it, nor on `has_statistics`,
// whether they are given.
Plan MakePlan(std::size_t num_rows, std::size_t norm_size,
              std::size_t element_size, bool has_statistics, bool past_cache);

}  // namespace lnbp

#endif  // LNBP_ONNX_PLAN_H_
