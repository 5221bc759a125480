// SPDX-License-Identifier: Apache-2.0

#include "kernel.h"

#include <cstring>

#include "broadcast.h"
#include "by_columns.h"
#include "by_rows.h"
#include "element_types.h"
#include "operands.h"
#include "scratch.h"

namespace lnbp {
namespace {

template <typename C, template <typename> class Way>
KernelResult Run(Operands<C>& operands, ThreadPool& pool) {
  Scratch scratch;
  operands.AddTo(scratch);
  const Way<C> way(operands, scratch);
  if (!scratch.Allocate()) return KernelResult::kOutOfMemory;
  operands.PrepareGamma();
  if (!way.Run(pool)) return KernelResult::kThreadPoolFailed;
  for (const auto& gradient : operands.gradients) gradient.Finish();
  return KernelResult::kOk;
}

template <typename C>
KernelResult Run(const Arguments& arguments, ThreadPool& pool) {
  Operands<C> operands(arguments);
  return operands.plan.by_columns ? Run<C, ByColumns>(operands, pool)
                                  : Run<C, ByRows>(operands, pool);
}

void StoreZeros(const Arguments& arguments, const Broadcast& broadcast,
                void* gradient) {
  if (gradient == nullptr) return;
  std::memset(gradient, 0, broadcast.size() * SizeOf(arguments.parameter_type));
}

}  // namespace

KernelResult LayerNormBackprop(const Arguments& arguments,
                               ThreadPool& pool) noexcept {
  if (arguments.num_rows == 0 || arguments.norm_size == 0) {
    StoreZeros(arguments, arguments.gamma_broadcast, arguments.gamma_delta);
    StoreZeros(arguments, arguments.beta_broadcast, arguments.beta_delta);
    return KernelResult::kOk;
  }
  return ComputesInDouble(arguments.type) ? Run<double>(arguments, pool)
                                          : Run<float>(arguments, pool);
}

}  // namespace lnbp
