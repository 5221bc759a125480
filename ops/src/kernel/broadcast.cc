// SPDX-License-Identifier: Apache-2.0

#include "broadcast.h"

namespace lnbp {

void Broadcast::AddAxis(std::size_t size, bool repeated) {
  if (size == 1) return;
  const std::size_t stride = repeated ? 0 : 1;
  if (!repeated) {
    for (std::size_t i = 0; i < num_axes_; ++i) axes_[i].stride *= size;
    size_ *= size;
  }
  any_repeated_ = any_repeated_ || repeated;
  const bool merges =
      num_axes_ > 0 && (axes_[num_axes_ - 1].stride == 0) == repeated;
  if (merges) {
    Axis& last = axes_[num_axes_ - 1];
    last = {last.size * size, stride};
  } else {
    axes_[num_axes_++] = {size, stride};
  }
}

}  // namespace lnbp
