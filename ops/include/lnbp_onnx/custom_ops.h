/* SPDX-License-Identifier: Apache-2.0
 *
 * What the library exports. It needs no header of ONNX Runtime's, and goes
 * together with one.
 */

#ifndef LNBP_ONNX_CUSTOM_OPS_H_
#define LNBP_ONNX_CUSTOM_OPS_H_

#include <stddef.h>

#ifdef _WIN32
#define LNBP_CALL __stdcall
#ifdef LNBP_BUILDING_LIBRARY
#define LNBP_EXPORT __declspec(dllexport)
#else
#define LNBP_EXPORT __declspec(dllimport)
#endif
#else
#define LNBP_CALL
#define LNBP_EXPORT __attribute__((visibility("default")))
#endif

struct OrtApiBase;
struct OrtCustomOp;
struct OrtSessionOptions;
struct OrtStatus;

#ifdef __cplusplus
extern "C" {
#endif

/* Adds LayerNormBackprop of domain "lnbp" to the options of a session. This is
 * the function that ONNX Runtime calls when it is given the library's path. */
LNBP_EXPORT struct OrtStatus* LNBP_CALL RegisterCustomOps(
    struct OrtSessionOptions* options, const struct OrtApiBase* api_base);

/* The overloads of LayerNormBackprop, without a domain, for those who put them
 * into one themselves; onnxruntime-extensions' AddExternalCustomOp takes each
 * of them. Sets *count to their number. They live as long as the library is
 * loaded. */
LNBP_EXPORT const struct OrtCustomOp* const* LNBP_CALL
LnbpGetCustomOps(size_t* count);

#ifdef __cplusplus
}
#endif

#endif /* LNBP_ONNX_CUSTOM_OPS_H_ */
