// SPDX-License-Identifier: Apache-2.0

#include "isa.h"

#include <algorithm>

#include "check.h"

namespace lnbp::test {
namespace {

void TestNames() {
  CHECK(IsaUpTo(nullptr) == BestIsa());
  CHECK(IsaUpTo("portable") == Isa::kPortable);
  CHECK(IsaUpTo("avx2") == std::min(Isa::kAvx2, BestIsa()));
  CHECK(IsaUpTo("avx512") == std::min(Isa::kAvx512, BestIsa()));
  CHECK(IsaUpTo("avx512bf16") == BestIsa());
  CHECK(IsaUpTo("") == BestIsa());
  CHECK(IsaUpTo("AVX2") == BestIsa());
}

#ifdef __GNUC__
#if defined(__x86_64__)
// The compiler's own look at the processor.
void TestDetection() {
  const bool has_avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") &&
                          __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") &&
                          __builtin_cpu_supports("avx512vl");
  CHECK((BestIsa() >= Isa::kAvx2) == has_avx2);
  CHECK((BestIsa() >= Isa::kAvx512) == has_avx512);
  CHECK((BestIsa() == Isa::kAvx512Bf16) ==
        (has_avx512 && __builtin_cpu_supports("avx512bf16")));
}
#else
void TestDetection() { CHECK(BestIsa() == Isa::kPortable); }
#endif
#else
void TestDetection() {}
#endif

}  // namespace
}  // namespace lnbp::test

int main() {
  lnbp::test::TestNames();
  lnbp::test::TestDetection();
  return lnbp::test::Result();
}
