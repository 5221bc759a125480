// SPDX-License-Identifier: Apache-2.0

#include "isa.h"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#ifdef LNBP_HAS_X86_SIMD
#ifdef _MSC_VER
#include <intrin.h>
#else
#include <cpuid.h>
#endif
#endif

namespace lnbp {

#ifdef LNBP_HAS_X86_SIMD
namespace {

struct Registers {
  std::uint32_t eax;
  std::uint32_t ebx;
  std::uint32_t ecx;
  std::uint32_t edx;
};

// All zero for a leaf that the processor does not have.
Registers Cpuid(std::uint32_t leaf, std::uint32_t subleaf) {
  constexpr std::uint32_t kExtended = 0x80000000u;
#ifdef _MSC_VER
  int registers[4];
  __cpuid(registers, static_cast<int>(leaf & kExtended));
  if (static_cast<std::uint32_t>(registers[0]) < leaf) return {};
  __cpuidex(registers, static_cast<int>(leaf), static_cast<int>(subleaf));
  return {static_cast<std::uint32_t>(registers[0]),
          static_cast<std::uint32_t>(registers[1]),
          static_cast<std::uint32_t>(registers[2]),
          static_cast<std::uint32_t>(registers[3])};
#else
  Registers registers{};
  if (__get_cpuid_max(leaf & kExtended, nullptr) < leaf) return registers;
  __cpuid_count(leaf, subleaf, registers.eax, registers.ebx, registers.ecx,
                registers.edx);
  return registers;
#endif
}

// The register states that the operating system saves.
std::uint32_t SavedStates() {
#ifdef _MSC_VER
  return static_cast<std::uint32_t>(_xgetbv(0));
#else
  std::uint32_t low;
  std::uint32_t high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return low;
#endif
}

bool HasAll(std::uint32_t bits, std::uint32_t wanted) {
  return (bits & wanted) == wanted;
}

Isa DetectIsa() {
  // Leaf 1: FMA, OSXSAVE, AVX, F16C.
  if (!HasAll(Cpuid(1, 0).ecx, 1u << 12 | 1u << 27 | 1u << 28 | 1u << 29)) {
    return Isa::kPortable;
  }
  const std::uint32_t states = SavedStates();
  const std::uint32_t features = Cpuid(7, 0).ebx;
  constexpr std::uint32_t kXmmYmm = 0x06;
  constexpr std::uint32_t kOpmaskZmm = 0xe0;
  constexpr std::uint32_t kAvx2 = 1u << 5;
  // F, DQ, BW, VL.
  constexpr std::uint32_t kAvx512 = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31;
  if (!HasAll(states, kXmmYmm) || !HasAll(features, kAvx2)) {
    return Isa::kPortable;
  }
  if (!HasAll(states, kOpmaskZmm) || !HasAll(features, kAvx512)) {
    return Isa::kAvx2;
  }
  constexpr std::uint32_t kBf16 = 1u << 5;
  return HasAll(Cpuid(7, 1).eax, kBf16) ? Isa::kAvx512Bf16 : Isa::kAvx512;
}

std::size_t DetectLastLevelCache() {
  // The same format in Intel's leaf and in AMD's; either is empty on the
  // other's processors.
  std::size_t largest = 0;
  for (const std::uint32_t leaf : {0x4u, 0x8000001du}) {
    constexpr std::uint32_t kMaxCaches = 8;
    for (std::uint32_t i = 0; i < kMaxCaches; ++i) {
      const Registers cache = Cpuid(leaf, i);
      if ((cache.eax & 0x1fu) == 0) break;
      const std::size_t ways = (cache.ebx >> 22) + 1;
      const std::size_t partitions = (cache.ebx >> 12 & 0x3ffu) + 1;
      const std::size_t line = (cache.ebx & 0xfffu) + 1;
      const std::size_t sets = std::size_t{cache.ecx} + 1;
      largest = std::max(largest, ways * partitions * line * sets);
    }
  }
  return largest;
}

}  // namespace

Isa BestIsa() {
  static const Isa isa = DetectIsa();
  return isa;
}

std::size_t LastLevelCacheBytes() {
  static const std::size_t bytes = DetectLastLevelCache();
  return bytes;
}

#else

Isa BestIsa() { return Isa::kPortable; }

std::size_t LastLevelCacheBytes() { return 0; }

#endif  // LNBP_HAS_X86_SIMD

Isa IsaUpTo(const char* name) {
  if (name == nullptr) return BestIsa();
  if (std::strcmp(name, "portable") == 0) return Isa::kPortable;
  if (std::strcmp(name, "avx2") == 0) return std::min(Isa::kAvx2, BestIsa());
  if (std::strcmp(name, "avx512") == 0) {
    return std::min(Isa::kAvx512, BestIsa());
  }
  return BestIsa();
}

Isa DefaultIsa() {
  static const Isa isa = IsaUpTo(std::getenv("LNBP_ISA"));
  return isa;
}

}  // namespace lnbp
