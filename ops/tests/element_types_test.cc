// SPDX-License-Identifier: Apache-2.0

#include "element_types.h"

#include <cmath>
#include <cstdint>
#include <limits>

#include "check.h"

namespace lnbp {
namespace {

bool IsNan(Float16 value) { return (value.bits & 0x7fff) > 0x7c00; }
bool IsNan(Bfloat16 value) { return (value.bits & 0x7fff) > 0x7f80; }

double Value(Float16 half) {
  const int exponent = (half.bits >> 10) & 31;
  const double mantissa = half.bits & 0x3ff;
  const double sign = (half.bits & 0x8000) != 0 ? -1 : 1;
  if (exponent == 31) return sign * std::numeric_limits<double>::infinity();
  if (exponent == 0) return sign * std::ldexp(mantissa, -24);
  return sign * std::ldexp(mantissa + 1024, exponent - 25);
}

double Value(Bfloat16 half) {
  const int exponent = (half.bits >> 7) & 255;
  const double mantissa = half.bits & 0x7f;
  const double sign = (half.bits & 0x8000) != 0 ? -1 : 1;
  if (exponent == 255) return sign * std::numeric_limits<double>::infinity();
  if (exponent == 0) return sign * std::ldexp(mantissa, -133);
  return sign * std::ldexp(mantissa + 128, exponent - 134);
}

// Every bit pattern, and the floats around the middle between it and the next.
template <typename Half>
void TestHalf(std::uint16_t infinity) {
  for (std::uint32_t bits = 0; bits <= 0xffff; ++bits) {
    const Half half{static_cast<std::uint16_t>(bits)};
    const float value = ToFloat(half);
    CHECK(std::isnan(value) == IsNan(half));
    const Half back = FromCompute<Half>(value);
    if (IsNan(half)) {
      CHECK(IsNan(back));
      continue;
    }
    CHECK(static_cast<double>(value) == Value(half));
    CHECK(std::signbit(value) == ((bits & 0x8000) != 0));
    CHECK(back.bits == bits);
    if ((bits & 0x7fff) == infinity) continue;

    const Half next{static_cast<std::uint16_t>(bits + 1)};
    // Rounding treats infinity as the number that would follow the largest.
    const bool overflows = (next.bits & 0x7fff) == infinity;
    const Half previous{static_cast<std::uint16_t>(bits - 1)};
    const double step =
        overflows ? Value(half) - Value(previous) : Value(next) - Value(half);
    const auto middle = static_cast<float>(Value(half) + step / 2);
    const float direction = std::signbit(value) ? -1.0f : 1.0f;
    const float outward = direction * std::numeric_limits<float>::infinity();
    CHECK(FromCompute<Half>(middle).bits == (bits % 2 == 0 ? half : next).bits);
    CHECK(FromCompute<Half>(std::nextafter(middle, 0.0f)).bits == half.bits);
    CHECK(FromCompute<Half>(std::nextafter(middle, outward)).bits == next.bits);
  }
  const float infinite = std::numeric_limits<float>::infinity();
  CHECK(FromCompute<Half>(infinite).bits == infinity);
  CHECK(FromCompute<Half>(-infinite).bits == (infinity | 0x8000));
  CHECK(FromCompute<Half>(std::numeric_limits<float>::max()).bits == infinity);
  // A NaN whose payload is only in the bits that are cut off.
  CHECK(IsNan(FromCompute<Half>(BitCast<float>(std::uint32_t{0x7f800001}))));
  CHECK(IsNan(FromCompute<Half>(BitCast<float>(std::uint32_t{0xffffffff}))));
}

template <typename T>
void TestInteger() {
  using C = ComputeType<T>;
  using Limits = std::numeric_limits<T>;
  CHECK((FromCompute<T, C>(C(2.75)) == 2));
  CHECK((FromCompute<T, C>(C(0.99)) == 0));
  CHECK((FromCompute<T, C>(C(-0.99)) == 0));
  if (std::is_signed_v<T>) CHECK((FromCompute<T, C>(C(-2.75)) == T(-2)));
  CHECK((FromCompute<T, C>(static_cast<C>(Limits::min())) == Limits::min()));
  // The largest number of the compute type that is in range.
  const C above = static_cast<C>(Limits::max() / 2 + 1) * 2;
  const C largest = std::nextafter(above, C(0));
  CHECK((FromCompute<T, C>(largest) == static_cast<T>(largest)));
  CHECK((FromCompute<T, C>(above) == static_cast<T>(largest)));
  CHECK((FromCompute<T, C>(C(-1e30)) == Limits::min()));
  CHECK((FromCompute<T, C>(std::numeric_limits<C>::quiet_NaN()) ==
         Limits::min()));
  if (sizeof(T) < sizeof(C)) {
    CHECK((FromCompute<T, C>(static_cast<C>(Limits::max())) == Limits::max()));
    CHECK((FromCompute<T, C>(static_cast<C>(Limits::min()) - C(0.5)) ==
           Limits::min()));
  }
}

}  // namespace
}  // namespace lnbp

int main() {
  lnbp::TestHalf<lnbp::Float16>(0x7c00);
  lnbp::TestHalf<lnbp::Bfloat16>(0x7f80);
  lnbp::TestInteger<std::uint8_t>();
  lnbp::TestInteger<std::uint16_t>();
  lnbp::TestInteger<std::uint32_t>();
  lnbp::TestInteger<std::uint64_t>();
  lnbp::TestInteger<std::int8_t>();
  lnbp::TestInteger<std::int16_t>();
  lnbp::TestInteger<std::int32_t>();
  lnbp::TestInteger<std::int64_t>();
  return lnbp::test::Result();
}
