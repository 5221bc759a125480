// SPDX-License-Identifier: Apache-2.0
//
// The arithmetic of LayerNormBackprop: pointers, sizes and element types. It
// knows nothing of ONNX Runtime.

#ifndef LNBP_ONNX_KERNEL_H_
#define LNBP_ONNX_KERNEL_H_

#include <cstddef>

#include "broadcast.h"
#include "element_types.h"
#include "processor.h"
#include "thread_pool.h"
#include "variants.h"

namespace lnbp {

// Each buffer may begin at any address. CheckBuffers in buffers.h says which
// may be the same.
struct Arguments {
  ElementType type;             // of input_forward, output_delta, input_delta
  ElementType parameter_type;   // of gamma, gamma_delta, beta_delta
  ElementType statistics_type;  // of mean, variance
  std::size_t num_rows;
  std::size_t norm_size;
  float epsilon;

  const void* input_forward;
  const void* output_delta;
  const void* gamma = nullptr;     // null: no affine part
  const void* mean = nullptr;      // null: the statistics are computed
  const void* variance = nullptr;  // null exactly where mean is

  void* input_delta;
  void* gamma_delta = nullptr;  // null: not wanted
  void* beta_delta = nullptr;   // null: not wanted

  Broadcast gamma_broadcast;  // of gamma and gamma_delta
  Broadcast beta_broadcast;   // of beta_delta

  const Variant* variant = &DefaultVariant();       // one that the machine has
  std::size_t cache_bytes = LastLevelCacheBytes();  // 0: not known
};

enum class KernelResult { kOk, kOutOfMemory, kThreadPoolFailed };

// The result does not depend, in any bit, on how `pool` spreads the work.
KernelResult LayerNormBackprop(const Arguments& arguments,
                               ThreadPool& pool) noexcept;

}  // namespace lnbp

#endif  // LNBP_ONNX_KERNEL_H_
