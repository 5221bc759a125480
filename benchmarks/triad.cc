// SPDX-License-Identifier: Apache-2.0
//
// The memory limit: reads two buffers and writes one, as the operator must.
// Integers are added, for they have no value that is slow to add.

#include <emmintrin.h>
#include <omp.h>

#include <cstdint>

namespace {

constexpr std::int64_t kBlock = 32;

void AddBlock(const std::uint16_t* a, const std::uint16_t* b,
              std::uint16_t* sum) {
  for (std::int64_t i = 0; i < kBlock; ++i) {
    sum[i] = static_cast<std::uint16_t>(a[i] + b[i]);
  }
}

// Past the caches: the lines of the sum are not read before they are written.
void StreamBlock(const std::uint16_t* a, const std::uint16_t* b,
                 std::uint16_t* sum) {
  constexpr std::int64_t kStep = 8;
  for (std::int64_t i = 0; i < kBlock; i += kStep) {
    const auto load = [i](const std::uint16_t* from) {
      return _mm_load_si128(reinterpret_cast<const __m128i*>(from + i));
    };
    _mm_stream_si128(reinterpret_cast<__m128i*>(sum + i),
                     _mm_add_epi16(load(a), load(b)));
  }
}

}  // namespace

// The buffers start at a page, and `size` counts numbers of two bytes.
extern "C" void BenchTriad(const std::uint16_t* a, const std::uint16_t* b,
                           std::uint16_t* sum, std::int64_t size, int streaming,
                           int threads, std::int64_t count) {
  const std::int64_t blocks = size / kBlock;
  for (; count > 0; --count) {
#pragma omp parallel num_threads(threads)
    {
      if (streaming) {
#pragma omp for schedule(static)
        for (std::int64_t i = 0; i < blocks; ++i) {
          StreamBlock(a + i * kBlock, b + i * kBlock, sum + i * kBlock);
        }
        _mm_sfence();
      } else {
#pragma omp for schedule(static)
        for (std::int64_t i = 0; i < blocks; ++i) {
          AddBlock(a + i * kBlock, b + i * kBlock, sum + i * kBlock);
        }
      }
    }
    for (std::int64_t i = blocks * kBlock; i < size; ++i) {
      sum[i] = static_cast<std::uint16_t>(a[i] + b[i]);
    }
  }
}
