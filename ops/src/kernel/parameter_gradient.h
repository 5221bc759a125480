// SPDX-License-Identifier: Apache-2.0

#ifndef LNBP_ONNX_PARAMETER_GRADIENT_H_
#define LNBP_ONNX_PARAMETER_GRADIENT_H_

#include <algorithm>
#include <cstddef>

#include "broadcast.h"
#include "conversions.h"
#include "element_types.h"
#include "scratch.h"

namespace lnbp {

// gamma_delta or beta_delta, from the sums over the rows of each column; where
// columns share an element, Finish adds up their sums. `output` is null where
// the gradient is not wanted.
template <typename C>
class ParameterGradient {
 public:
  ParameterGradient(ElementType type, const Broadcast& broadcast,
                    std::size_t norm_size, void* output)
      : type_(type),
        broadcast_(broadcast),
        norm_size_(norm_size),
        output_(output) {}

  bool is_wanted() const { return output_ != nullptr; }

  void AddTo(Scratch& scratch) {
    if (!has_shared_elements()) return;
    totals_ = scratch.Add<double>(norm_size_);
    elements_ = scratch.Add<double>(broadcast_.size());
  }

  // The sums of the columns from `begin` on. To be called for all columns where
  // the gradient is wanted.
  template <typename Sum>
  void StoreColumns(const Sum* sums, std::size_t begin,
                    std::size_t count) const {
    if (has_shared_elements()) {
      std::copy_n(sums, count, totals_.get() + begin);
    } else {
      StoreElements<C>(type_, sums, begin, count, output_);
    }
  }

  void Finish() const {
    if (!has_shared_elements()) return;
    const double* const totals = totals_.get();
    double* const elements = elements_.get();
    std::fill_n(elements, broadcast_.size(), 0.0);
    broadcast_.ForEachColumn(norm_size_,
                             [=](std::size_t column, std::size_t element) {
                               elements[element] += totals[column];
                             });
    StoreElements<C>(type_, elements, 0, broadcast_.size(), output_);
  }

 private:
  bool has_shared_elements() const {
    return is_wanted() && !broadcast_.is_identity();
  }

  ElementType type_;
  const Broadcast& broadcast_;
  std::size_t norm_size_;
  void* output_;
  Scratch::Piece<double> totals_;
  Scratch::Piece<double> elements_;
};

}  // namespace lnbp

#endif  // LNBP_ONNX_PARAMETER_GRADIENT_H_
