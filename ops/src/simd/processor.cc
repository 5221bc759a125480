// SPDX-License-Identifier: Apache-2.0

#include "processor.h"

#include <algorithm>
#include <cstdint>

#ifdef LNBP_HAS_X86_SIMD
#ifdef _MSC_VER
#include <intrin.h>
#else
#include <cpuid.h>
#endif
#endif
#ifdef LNBP_HAS_NEON_BF16
#include <sys/auxv.h>
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
  if (static_cast<std::uint32_t>(__get_cpuid_max(leaf & kExtended, nullptr)) <
      leaf) {
    return registers;
  }
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

// The register states of SIMD: XMM and YMM, then those of AVX-512.
constexpr std::uint32_t kXmmYmm = 0x06;
constexpr std::uint32_t kOpmaskZmm = 0xe0;

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

bool HasAvx2() {
  // FMA, OSXSAVE, AVX, F16C.
  constexpr std::uint32_t kBase = 1u << 12 | 1u << 27 | 1u << 28 | 1u << 29;
  constexpr std::uint32_t kAvx2 = 1u << 5;
  return HasAll(Cpuid(1, 0).ecx, kBase) && HasAll(SavedStates(), kXmmYmm) &&
         HasAll(Cpuid(7, 0).ebx, kAvx2);
}

bool HasAvx512() {
  // F, DQ, BW, VL.
  constexpr std::uint32_t kAvx512 = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31;
  return HasAvx2() && HasAll(SavedStates(), kOpmaskZmm) &&
         HasAll(Cpuid(7, 0).ebx, kAvx512);
}

bool HasAvx512Bf16() {
  constexpr std::uint32_t kBf16 = 1u << 5;
  return HasAvx512() && HasAll(Cpuid(7, 1).eax, kBf16);
}

std::size_t LastLevelCacheBytes() {
  static const std::size_t bytes = DetectLastLevelCache();
  return bytes;
}

#else

std::size_t LastLevelCacheBytes() { return 0; }

#endif  // LNBP_HAS_X86_SIMD

#ifdef LNBP_HAS_NEON_BF16
bool HasNeonBf16() {
  constexpr unsigned long kBf16 = 1ul << 14;  // HWCAP2_BF16
  return (getauxval(AT_HWCAP2) & kBf16) != 0;
}
#endif

}  // namespace lnbp
