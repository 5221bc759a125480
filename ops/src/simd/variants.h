// SPDX-License-Identifier: Apache-2.0
//
// The variants of the loops, and the choice among them.

#ifndef LNBP_ONNX_VARIANTS_H_
#define LNBP_ONNX_VARIANTS_H_

#include <cstddef>

#include "element_types.h"
#include "row_functions.h"

namespace lnbp {

struct Variant {
  const char* name;        // as in LNBP_ISA
  bool (*is_available)();  // whether this machine has what it needs
  const FunctionTable* functions;
};

// Those of this build, from the plainest to the best. A machine that has what
// one needs also has what those before it need.
struct Variants {
  static const Variant* begin();
  static const Variant* end();
};

// The last one that this machine has.
const Variant& BestVariant();

// What `name` allows: that variant, or the best one before it that this machine
// has. A null or unknown name allows everything.
const Variant& VariantUpTo(const char* name);

// What the environment variable LNBP_ISA allows; read once.
const Variant& DefaultVariant();

// The functions for tensors of `type`, computed in `C`. They are those of
// `variant`, one of Variants that this machine has, or of the last one before
// it that has any for this type.
template <typename C>
const RowFunctions<C>& FunctionsOf(const Variant& variant, ElementType type);

}  // namespace lnbp

#endif  // LNBP_ONNX_VARIANTS_H_
