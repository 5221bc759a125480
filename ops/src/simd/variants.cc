// SPDX-License-Identifier: Apache-2.0

#include "variants.h"

#include <cstdlib>
#include <cstring>
#include <iterator>

#include "function_tables.h"
#include "processor.h"

namespace lnbp {
namespace {

bool Always() { return true; }

// The list of variants; there is no other. Portable comes first, since it has
// functions for every type.
constexpr Variant kVariants[] = {
    {"portable", Always, &kPortableFunctions},
#ifdef LNBP_HAS_X86_SIMD
    {"avx2", HasAvx2, &kAvx2Functions},
    {"avx512", HasAvx512, &kAvx512Functions},
    {"avx512bf16", HasAvx512Bf16, &kAvx512Bf16Functions},
#endif
#ifdef LNBP_HAS_NEON
    {"neon", Always, &kNeonFunctions},
#endif
#ifdef LNBP_HAS_NEON_BF16
    {"neonbf16", HasNeonBf16, &kNeonBf16Functions},
#endif
};

const Variant& LastAvailable(const Variant* last) {
  while (!last->is_available()) --last;
  return *last;
}

}  // namespace

const Variant* Variants::begin() { return std::begin(kVariants); }
const Variant* Variants::end() { return std::end(kVariants); }

const Variant& BestVariant() {
  static const Variant& best = LastAvailable(Variants::end() - 1);
  return best;
}

const Variant& VariantUpTo(const char* name) {
  if (name == nullptr) return BestVariant();
  for (const Variant& variant : Variants{}) {
    if (std::strcmp(name, variant.name) == 0) return LastAvailable(&variant);
  }
  return BestVariant();
}

const Variant& DefaultVariant() {
  static const Variant& variant = VariantUpTo(std::getenv("LNBP_ISA"));
  return variant;
}

template <typename C>
const RowFunctions<C>& FunctionsOf(const Variant& variant, ElementType type) {
  for (const Variant* one = &variant;; --one) {
    if (const auto* functions = one->functions->Find<C>(type)) {
      return *functions;
    }
  }
}

template const RowFunctions<float>& FunctionsOf(const Variant&, ElementType);
template const RowFunctions<double>& FunctionsOf(const Variant&, ElementType);

}  // namespace lnbp
