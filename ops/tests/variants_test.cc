// SPDX-License-Identifier: Apache-2.0

#include "variants.h"

#include <cstring>
#include <fstream>
#include <iterator>
#include <string>

#include "check.h"

namespace lnbp::test {
namespace {

bool IsAvailable(const std::string& name) {
  for (const Variant& variant : Variants{}) {
    if (variant.name == name) return variant.is_available();
  }
  return false;
}

void TestNames() {
  CHECK(&VariantUpTo(nullptr) == &BestVariant());
  CHECK(&VariantUpTo("") == &BestVariant());
  CHECK(&VariantUpTo("PORTABLE") == &BestVariant());
  CHECK(std::strcmp(Variants::begin()->name, "portable") == 0);
  const Variant* best = nullptr;
  for (const Variant& variant : Variants{}) {
    if (variant.is_available()) best = &variant;
    CHECK(&VariantUpTo(variant.name) == best);
  }
  CHECK(&BestVariant() == best);
}

// A variant without functions for a type takes those of one before it.
void TestFunctions() {
  const RowFunctions<float>* before = nullptr;
  for (const Variant& variant : Variants{}) {
    const auto* own = variant.functions->Find<float>(ElementType::kFloat);
    if (own != nullptr) before = own;
    CHECK(&FunctionsOf<float>(variant, ElementType::kFloat) == before);
  }
}

#if defined(__GNUC__) && defined(__x86_64__)
// The compiler's own look at the processor.
void TestDetection() {
  const bool has_avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") &&
                          __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512dq") &&
                          __builtin_cpu_supports("avx512vl");
  CHECK(IsAvailable("avx2") == has_avx2);
  CHECK(IsAvailable("avx512") == has_avx512);
  CHECK(IsAvailable("avx512bf16") ==
        (has_avx512 && __builtin_cpu_supports("avx512bf16")));
}
#elif defined(__GNUC__) && defined(__aarch64__)
void TestDetection() {
  CHECK(IsAvailable("neon"));
#ifdef __linux__
  // The kernel's own words for what the compiler has no question for.
  std::ifstream info("/proc/cpuinfo");
  const std::string words{std::istreambuf_iterator<char>(info), {}};
  if (words.find("Features") != std::string::npos) {
    CHECK(IsAvailable("neonbf16") ==
          (words.find(" bf16") != std::string::npos));
  }
#endif
}
#else
void TestDetection() { CHECK(IsAvailable("portable")); }
#endif

}  // namespace
}  // namespace lnbp::test

int main() {
  lnbp::test::TestNames();
  lnbp::test::TestFunctions();
  lnbp::test::TestDetection();
  return lnbp::test::Result();
}
