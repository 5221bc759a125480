// SPDX-License-Identifier: Apache-2.0

#include "avx2_row_functions.h"

#include "row_steps.h"
#include "simd_avx2.h"
#include "simd_steps.h"

namespace lnbp {
namespace {

template <typename T>
constexpr RowFunctions<ComputeType<T>> kFunctions =
    RowFunctionsOf<T, ComputeType<T>, SimdSteps<T, avx2::Elements<T>>>::Table();

}  // namespace

template <>
const RowFunctions<float>* Avx2RowFunctions<float>(ElementType type) {
  switch (type) {
    case ElementType::kFloat:
      return &kFunctions<float>;
    case ElementType::kFloat16:
      return &kFunctions<Float16>;
    case ElementType::kBfloat16:
      return &kFunctions<Bfloat16>;
    default:
      return nullptr;
  }
}

template <>
const RowFunctions<double>* Avx2RowFunctions<double>(ElementType type) {
  return type == ElementType::kDouble ? &kFunctions<double> : nullptr;
}

}  // namespace lnbp
