// SPDX-License-Identifier: Apache-2.0
//
// Errors within the glue are exceptions; at the boundary they become statuses.

#ifndef LNBP_ONNX_ORT_STATUS_H_
#define LNBP_ONNX_ORT_STATUS_H_

#include <exception>
#include <new>

#include "errors.h"
#include "ort_abi.h"

namespace lnbp {

// A status of the runtime's, to be handed on as it is.
struct StatusError {
  OrtStatus* status;
};

inline void ThrowOnError(OrtStatus* status) {
  if (status != nullptr) throw StatusError{status};
}

// Whether the call succeeded; releases the status if it did not.
inline bool Succeeded(const ort::Api& api, OrtStatus* status) {
  if (status != nullptr) api.ReleaseStatus(status);
  return status == nullptr;
}

// Runs `body`; what it throws becomes a status.
template <typename Body>
OrtStatus* CatchAll(const ort::Api& api, Body body) noexcept {
  try {
    body();
    return nullptr;
  } catch (const StatusError& error) {
    return error.status;
  } catch (const InvalidNode& error) {
    return api.CreateStatus(ort::kInvalidArgument, error.what());
  } catch (const std::bad_alloc&) {
    return api.CreateStatus(ort::kFail, "LayerNormBackprop: out of memory.");
  } catch (const std::exception& error) {
    return api.CreateStatus(ort::kFail, error.what());
  } catch (...) {
    return api.CreateStatus(ort::kFail, "LayerNormBackprop: unknown error.");
  }
}

}  // namespace lnbp

#endif  // LNBP_ONNX_ORT_STATUS_H_
