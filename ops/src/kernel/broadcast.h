// SPDX-License-Identifier: Apache-2.0
//
// How the elements of gamma or beta lie over the columns of a row.

#ifndef LNBP_ONNX_BROADCAST_H_
#define LNBP_ONNX_BROADCAST_H_

#include <array>
#include <cstddef>

namespace lnbp {

inline constexpr std::size_t kMaxRank = 64;

class Broadcast {
 public:
  // One element for each of `norm_size` columns.
  explicit Broadcast(std::size_t norm_size = 0) : size_(norm_size) {}

  // Adds an axis to the right of those there are: `size` columns, which share
  // one element if `repeated`. To be called on Broadcast(1), kMaxRank times at
  // most; a broadcast without axes has one column and one element.
  void AddAxis(std::size_t size, bool repeated);

  // The number of elements.
  std::size_t size() const { return size_; }

  // Whether element i belongs to column i alone.
  bool is_identity() const { return !any_repeated_; }

  // Calls visit(column, element) for every column, from the left.
  template <typename Visit>
  void ForEachColumn(std::size_t norm_size, Visit visit) const;

 private:
  struct Axis {
    std::size_t size;
    std::size_t stride;  // 0 where repeated
  };

  std::size_t size_;
  std::size_t num_axes_ = 0;
  bool any_repeated_ = false;
  std::array<Axis, kMaxRank> axes_;
};

template <typename Visit>
void Broadcast::ForEachColumn(std::size_t norm_size, Visit visit) const {
  std::array<std::size_t, kMaxRank> position{};
  std::size_t element = 0;
  for (std::size_t column = 0; column < norm_size; ++column) {
    visit(column, any_repeated_ ? element : column);
    for (std::size_t i = num_axes_; i-- > 0;) {
      element += axes_[i].stride;
      if (++position[i] < axes_[i].size) break;
      element -= axes_[i].stride * axes_[i].size;
      position[i] = 0;
    }
  }
}

}  // namespace lnbp

#endif  // LNBP_ONNX_BROADCAST_H_
