// SPDX-License-Identifier: Apache-2.0
//
// Arrays of any element type, from and to arrays that are computed with.

#ifndef LNBP_ONNX_CONVERSIONS_H_
#define LNBP_ONNX_CONVERSIONS_H_

#include <cstddef>

#include "element_types.h"

namespace lnbp {

template <typename C>
void LoadElements(ElementType type, const void* from, std::size_t begin,
                  std::size_t count, C* to) {
  WithElementType(type, [=](auto tag) {
    using T = typename decltype(tag)::Type;
    for (std::size_t i = 0; i < count; ++i) {
      to[i] = ToCompute<C>(LoadElement<T>(from, begin + i));
    }
  });
}

// By way of the compute type `C`.
template <typename C, typename Sum>
void StoreElements(ElementType type, const Sum* from, std::size_t begin,
                   std::size_t count, void* to) {
  WithElementType(type, [=](auto tag) {
    using T = typename decltype(tag)::Type;
    for (std::size_t i = 0; i < count; ++i) {
      StoreElement(to, begin + i, FromCompute<T>(static_cast<C>(from[i])));
    }
  });
}

}  // namespace lnbp

#endif  // LNBP_ONNX_CONVERSIONS_H_
