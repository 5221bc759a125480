// SPDX-License-Identifier: Apache-2.0
//
// The element types of the operator, the type each is computed in, and the
// conversions between the two.

#ifndef LNBP_ONNX_ELEMENT_TYPES_H_
#define LNBP_ONNX_ELEMENT_TYPES_H_

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "inline.h"

namespace lnbp {

// The numbers are those of ONNX's TensorProto.DataType.
enum class ElementType : std::uint8_t {
  kFloat = 1,
  kUint8 = 2,
  kInt8 = 3,
  kUint16 = 4,
  kInt16 = 5,
  kInt32 = 6,
  kInt64 = 7,
  kFloat16 = 10,
  kDouble = 11,
  kUint32 = 12,
  kUint64 = 13,
  kBfloat16 = 16,
};

inline constexpr ElementType kElementTypes[] = {
    ElementType::kFloat,    ElementType::kDouble, ElementType::kFloat16,
    ElementType::kBfloat16, ElementType::kUint8,  ElementType::kUint16,
    ElementType::kUint32,   ElementType::kUint64, ElementType::kInt8,
    ElementType::kInt16,    ElementType::kInt32,  ElementType::kInt64};

struct Float16 {
  std::uint16_t bits;
};

struct Bfloat16 {
  std::uint16_t bits;
};

template <typename To, typename From>
LNBP_INLINE To BitCast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

// All bits, or none.
LNBP_INLINE std::uint32_t MaskOf(bool is_set) {
  return std::uint32_t{0} - static_cast<std::uint32_t>(is_set);
}

LNBP_INLINE float ToFloat(Bfloat16 value) {
  return BitCast<float>(static_cast<std::uint32_t>(value.bits) << 16);
}

// Without branches, like its inverse: compilers make vectors of it.
LNBP_INLINE float ToFloat(Float16 value) {
  const std::uint32_t sign = static_cast<std::uint32_t>(value.bits & 0x8000u)
                             << 16;
  const std::uint32_t magnitude =
      static_cast<std::uint32_t>(value.bits & 0x7fffu) << 13;
  // Read as a float, the magnitude has its exponent 112 too low. Scaling by
  // 2^112 corrects that, and normalises subnormal numbers on the way.
  constexpr std::uint32_t kTwoPow112 = (112u + 127u) << 23;
  constexpr std::uint32_t kFirstNonFinite = 0x7c00u << 13;
  constexpr std::uint32_t kExponentMask = 0xffu << 23;
  const std::uint32_t scaled = BitCast<std::uint32_t>(
      BitCast<float>(magnitude) * BitCast<float>(kTwoPow112));
  return BitCast<float>(sign | scaled |
                        (MaskOf(magnitude >= kFirstNonFinite) & kExponentMask));
}

// To nearest, ties to even; a NaN stays a (quiet) NaN.
LNBP_INLINE Bfloat16 ToBfloat16(float value) {
  const std::uint32_t bits = BitCast<std::uint32_t>(value);
  const std::uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const std::uint32_t quiet_nan = (bits >> 16) | 0x40u;
  const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
  return {static_cast<std::uint16_t>(is_nan ? quiet_nan : rounded)};
}

// To nearest, ties to even; a NaN stays a (quiet) NaN.
LNBP_INLINE Float16 ToFloat16(float value) {
  constexpr std::int32_t kInfinity = 0x7f800000;
  constexpr std::int32_t kSmallestNormal = 113 << 23;  // 2^-14
  constexpr std::int32_t kFirstOverflow = 143 << 23;   // 2^16
  const std::uint32_t bits = BitCast<std::uint32_t>(value);
  const auto magnitude = static_cast<std::int32_t>(bits & 0x7fffffffu);
  std::int32_t exponent = magnitude & kInfinity;
  exponent = exponent > kSmallestNormal ? exponent : kSmallestNormal;
  exponent = exponent < kFirstOverflow ? exponent : kFirstOverflow;
  // A power of two whose last bit as a float weighs what that of the result
  // does: adding it rounds there. What the sum has more, a carry included, is
  // the result's fraction with its leading bit, which its exponent then lacks.
  const std::int32_t power = exponent + (13 << 23);
  const std::int32_t fraction =
      BitCast<std::int32_t>(BitCast<float>(power) + BitCast<float>(magnitude)) -
      power;
  std::int32_t number = ((exponent - kSmallestNormal) >> 13) + fraction;
  number = number < 0x7c00 ? number : 0x7c00;
  const std::uint32_t nan = 0x200u | ((bits >> 13) & 0x3ffu);
  return {static_cast<std::uint16_t>(((bits >> 16) & 0x8000u) |
                                     static_cast<std::uint32_t>(number) |
                                     (MaskOf(magnitude > kInfinity) & nan))};
}

// An element of a buffer, which may begin at any address: never through a
// pointer to T, of which compilers expect that it is aligned.
template <typename T>
LNBP_INLINE T LoadElement(const void* buffer, std::size_t index) {
  T element;
  std::memcpy(&element,
              static_cast<const unsigned char*>(buffer) + index * sizeof(T),
              sizeof(T));
  return element;
}

template <typename T>
LNBP_INLINE void StoreElement(void* buffer, std::size_t index, T element) {
  std::memcpy(static_cast<unsigned char*>(buffer) + index * sizeof(T), &element,
              sizeof(T));
}

// double for double and the 32- and 64-bit integers, float for the rest.
template <typename T>
using ComputeType =
    std::conditional_t<std::is_same_v<T, double> ||
                           (std::is_integral_v<T> && sizeof(T) >= 4),
                       double, float>;

// From an element to the compute type `C`.
template <typename C, typename T>
LNBP_INLINE C ToCompute(T value) {
  if constexpr (std::is_same_v<T, Float16> || std::is_same_v<T, Bfloat16>) {
    return ToFloat(value);
  } else {
    return static_cast<C>(value);
  }
}

// From the compute type `C` to an element: to nearest even, or toward zero for
// an integer. An integer that is out of range becomes the nearest that `C` has,
// and NaN the lowest, only because C++ leaves the plain cast undefined; nobody
// may rely on it.
template <typename T, typename C>
LNBP_INLINE T FromCompute(C value) {
  if constexpr (std::is_same_v<T, Float16>) {
    return ToFloat16(static_cast<float>(value));
  } else if constexpr (std::is_same_v<T, Bfloat16>) {
    return ToBfloat16(static_cast<float>(value));
  } else if constexpr (std::is_integral_v<T>) {
    // Between them the cast is defined.
    using Limits = std::numeric_limits<T>;
    constexpr C kLowest = static_cast<C>(Limits::min());
    constexpr C kHighest = static_cast<C>(Limits::max() / 2 + 1) *
                           (2 - std::numeric_limits<C>::epsilon());
    const C number = value > kLowest ? value : kLowest;
    return static_cast<T>(number < kHighest ? number : kHighest);
  } else {
    return static_cast<T>(value);
  }
}

template <typename T>
struct TypeTag {
  using Type = T;
};

// Calls `function` with the TypeTag of the C++ type that `type` names.
template <typename Function>
constexpr auto WithElementType(ElementType type, Function function) {
  switch (type) {
    case ElementType::kUint8:
      return function(TypeTag<std::uint8_t>{});
    case ElementType::kInt8:
      return function(TypeTag<std::int8_t>{});
    case ElementType::kUint16:
      return function(TypeTag<std::uint16_t>{});
    case ElementType::kInt16:
      return function(TypeTag<std::int16_t>{});
    case ElementType::kUint32:
      return function(TypeTag<std::uint32_t>{});
    case ElementType::kInt32:
      return function(TypeTag<std::int32_t>{});
    case ElementType::kUint64:
      return function(TypeTag<std::uint64_t>{});
    case ElementType::kInt64:
      return function(TypeTag<std::int64_t>{});
    case ElementType::kFloat16:
      return function(TypeTag<Float16>{});
    case ElementType::kBfloat16:
      return function(TypeTag<Bfloat16>{});
    case ElementType::kDouble:
      return function(TypeTag<double>{});
    case ElementType::kFloat:
      break;
  }
  return function(TypeTag<float>{});
}

inline std::size_t SizeOf(ElementType type) {
  return WithElementType(
      type, [](auto tag) { return sizeof(typename decltype(tag)::Type); });
}

inline bool ComputesInDouble(ElementType type) {
  return WithElementType(type, [](auto tag) {
    using T = typename decltype(tag)::Type;
    return std::is_same_v<ComputeType<T>, double>;
  });
}

}  // namespace lnbp

#endif  // LNBP_ONNX_ELEMENT_TYPES_H_
