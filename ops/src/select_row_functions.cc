// SPDX-License-Identifier: Apache-2.0

#include "select_row_functions.h"

#include "portable_row_functions.h"

namespace lnbp {

template <typename C>
const RowFunctions<C>& SelectRowFunctions(ElementType type) {
  return PortableRowFunctions<C>(type);
}

template const RowFunctions<float>& SelectRowFunctions<float>(ElementType);
template const RowFunctions<double>& SelectRowFunctions<double>(ElementType);

}  // namespace lnbp
