// SPDX-License-Identifier: Apache-2.0

#include "select_row_functions.h"

#include <type_traits>

#include "portable_row_functions.h"
#ifdef LNBP_HAS_X86_SIMD
#include "avx2_row_functions.h"
#include "avx512_row_functions.h"
#include "avx512bf16_row_functions.h"
#endif

namespace lnbp {

template <typename C>
const RowFunctions<C>& SelectRowFunctions(ElementType type, Isa isa) {
  const RowFunctions<C>* functions = nullptr;
#ifdef LNBP_HAS_X86_SIMD
  if (isa >= Isa::kAvx512) functions = Avx512RowFunctions<C>(type);
  if (isa == Isa::kAvx2) functions = Avx2RowFunctions<C>(type);
  if constexpr (std::is_same_v<C, float>) {
    if (isa == Isa::kAvx512Bf16 && type == ElementType::kBfloat16) {
      functions = Avx512Bf16RowFunctions();
    }
  }
#else
  static_cast<void>(isa);
#endif
  return functions == nullptr ? PortableRowFunctions<C>(type) : *functions;
}

template const RowFunctions<float>& SelectRowFunctions<float>(ElementType, Isa);
template const RowFunctions<double>& SelectRowFunctions<double>(ElementType,
                                                                Isa);

}  // namespace lnbp
