// SPDX-License-Identifier: Apache-2.0
//
// Vectors of two registers, from what an instruction set has for one. Two give
// independent chains of additions, and half types fill a register.
//
// A Register is a struct around a register of numbers of one type:
//
//     Number, kSize, Zeros(), Of(number)
//     Load(from), Store(to, v), Stream(to, v) past the cache
//     Masks::Of(count), the masks `a` and `b` that have the first `count` lanes
//         of two registers
//     Load(from, mask), Store(to, v, mask), Keep(v, mask): the other lanes are
//         zero, or left alone in memory
//     x + y, x * y, MulAdd(x, y, z) = x * y + z, rounded once
//     SumLanes(v, sums), the sums over the lanes of four
//
// in a struct, because gcc drops the attributes of a register's own type where
// that is a template argument.

#ifndef LNBP_ONNX_PAIR_H_
#define LNBP_ONNX_PAIR_H_

#include <cstddef>

#include "element_types.h"
#include "inline.h"

namespace lnbp {

// How much of a vector there is in memory.
struct Whole {};
struct First {
  std::size_t count;
};

// For registers without masks: how many of `count` lanes are in the first and
// in the second of two registers of kSize.
template <std::size_t kSize>
struct Counts {
  std::size_t a;
  std::size_t b;

  static LNBP_INLINE Counts Of(std::size_t count) {
    return count < kSize ? Counts{count, 0} : Counts{kSize, count - kSize};
  }
};

template <typename Register>
struct Pair {
  Register a;
  Register b;

  static constexpr std::size_t kSize = 2 * Register::kSize;

  static LNBP_INLINE Pair Zeros() {
    return {Register::Zeros(), Register::Zeros()};
  }

  // A vector whose lanes are all one number: half the registers.
  struct Uniform {
    Register a;

    static LNBP_INLINE Uniform Of(typename Register::Number value) {
      return {Register::Of(value)};
    }
  };

  friend LNBP_INLINE Pair operator+(Pair x, Pair y) {
    return {x.a + y.a, x.b + y.b};
  }
  friend LNBP_INLINE Pair operator+(Pair x, Uniform y) {
    return {x.a + y.a, x.b + y.a};
  }
  friend LNBP_INLINE Pair operator*(Pair x, Pair y) {
    return {x.a * y.a, x.b * y.b};
  }
  friend LNBP_INLINE Pair MulAdd(Pair x, Pair y, Pair z) {
    return {MulAdd(x.a, y.a, z.a), MulAdd(x.b, y.b, z.b)};
  }
  friend LNBP_INLINE Pair MulAdd(Pair x, Uniform y, Pair z) {
    return {MulAdd(x.a, y.a, z.a), MulAdd(x.b, y.a, z.b)};
  }
  friend LNBP_INLINE Pair MulAdd(Pair x, Uniform y, Uniform z) {
    return {MulAdd(x.a, y.a, z.a), MulAdd(x.b, y.a, z.a)};
  }
  // The sums over the lanes of four vectors.
  friend LNBP_INLINE void SumLanes(const Pair* vectors, double* sums) {
    Register v[4];
    for (int i = 0; i < 4; ++i) v[i] = vectors[i].a + vectors[i].b;
    SumLanes(v, sums);
  }
};

// How elements of a type are read, as vectors of the compute type, and written;
// here those of the compute type itself. `Columns` does the same for the arrays
// of the compute type that lie beside a row, with the same column in the same
// lane.
template <typename Register>
struct PairElements {
  using Vector = Pair<Register>;
  using Columns = PairElements;
  using Number = typename Register::Number;

  static LNBP_INLINE Vector Load(const Number* from, Whole) {
    return {Register::Load(from), Register::Load(from + Register::kSize)};
  }
  static LNBP_INLINE Vector Load(const Number* from, First part) {
    const auto masks = Register::Masks::Of(part.count);
    return {Register::Load(from, masks.a),
            Register::Load(from + Register::kSize, masks.b)};
  }
  static LNBP_INLINE void Store(Number* to, Vector v, Whole) {
    Register::Store(to, v.a);
    Register::Store(to + Register::kSize, v.b);
  }
  static LNBP_INLINE void Store(Number* to, Vector v, First part) {
    const auto masks = Register::Masks::Of(part.count);
    Register::Store(to, v.a, masks.a);
    Register::Store(to + Register::kSize, v.b, masks.b);
  }
  static LNBP_INLINE void Stream(Number* to, Vector v) {
    Register::Stream(to, v.a);
    Register::Stream(to + Register::kSize, v.b);
  }
  // v with zeros where there is no element.
  static LNBP_INLINE Vector Keep(Vector v, First part) {
    const auto masks = Register::Masks::Of(part.count);
    return {Register::Keep(v.a, masks.a), Register::Keep(v.b, masks.b)};
  }
};

// For what has no masks: the first `count` of at most kSize elements, by way of
// a copy.
template <typename T, std::size_t kSize>
struct PartialCopy {
  alignas(kSize * sizeof(T)) T elements[kSize];

  static LNBP_INLINE PartialCopy Of(const void* from, std::size_t count) {
    PartialCopy copy{};
    for (std::size_t i = 0; i < count; ++i) {
      copy.elements[i] = LoadElement<T>(from, i);
    }
    return copy;
  }
  LNBP_INLINE void CopyTo(void* to, std::size_t count) const {
    for (std::size_t i = 0; i < count; ++i) StoreElement(to, i, elements[i]);
  }
};

}  // namespace lnbp

#endif  // LNBP_ONNX_PAIR_H_
