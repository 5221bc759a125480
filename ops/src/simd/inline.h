// SPDX-License-Identifier: Apache-2.0
//
// Code that is compiled for an instruction set beyond the baseline is inlined,
// or named after that set: of a function of a common name the linker keeps one,
// which could be the one that some machines cannot run.

#ifndef LNBP_ONNX_INLINE_H_
#define LNBP_ONNX_INLINE_H_

// Without it gcc also calls the bodies of loops, with their registers in
// memory.
#ifdef _MSC_VER
#define LNBP_INLINE __forceinline
#define LNBP_INLINE_LAMBDA
#else
#define LNBP_INLINE inline __attribute__((always_inline))
#define LNBP_INLINE_LAMBDA __attribute__((always_inline))
#endif

// Before a loop over rows whose values shall stay in registers.
#ifdef __GNUC__
#define LNBP_UNROLL _Pragma("GCC unroll 4")
#else
#define LNBP_UNROLL
#endif

#endif  // LNBP_ONNX_INLINE_H_
