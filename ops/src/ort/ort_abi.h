// SPDX-License-Identifier: Apache-2.0
//
// The part of ONNX Runtime's C interface that this library uses, so that it
// builds without ONNX Runtime's headers. The interface is versioned and only
// ever appended to. ort_abi_check.cc compares what is declared here, positions
// and signatures, with the official header where there is one.
//
// The comment at each member is its position in the table and the first version
// of the interface (API n came with onnxruntime 1.n) that has it.

#ifndef LNBP_ONNX_ORT_ABI_H_
#define LNBP_ONNX_ORT_ABI_H_

#include <cstddef>
#include <cstdint>

#ifdef _WIN32
#define LNBP_ORT_CALL __stdcall
#else
#define LNBP_ORT_CALL
#endif

struct OrtCustomOpDomain;
struct OrtKernelContext;
struct OrtKernelInfo;
struct OrtSessionOptions;
struct OrtStatus;
struct OrtTensorTypeAndShapeInfo;
struct OrtTypeInfo;
struct OrtValue;

namespace lnbp::ort {

inline constexpr std::uint32_t kApiVersion = 17;
// The first version whose runtimes ask for GetMayInplace.
inline constexpr std::uint32_t kMayInplaceVersion = 18;
// The first version that hands out a shape without copying it to the heap.
inline constexpr std::uint32_t kShapeReferenceVersion = 24;

enum ErrorCode : int {
  kFail = 1,
  kInvalidArgument = 2,
};

// The values are those of lnbp::ElementType.
enum TensorElementType : int {};

enum Characteristic : int {
  kOptional = 1,
};

enum MemoryType : int {
  kMemoryTypeDefault = 0,
};

struct CustomOp;

// Members that are not used.
template <std::size_t first, std::size_t last>
struct Unused {
  void* members[last - first + 1];
};

struct Api {
  // 0, API 1
  OrtStatus*(LNBP_ORT_CALL* CreateStatus)(ErrorCode code, const char* message);
  Unused<1, 25> unused_1;
  // 26, API 1
  OrtStatus*(LNBP_ORT_CALL* CreateCustomOpDomain)(const char* domain,
                                                  OrtCustomOpDomain** out);
  // 27, API 1
  OrtStatus*(LNBP_ORT_CALL* CustomOpDomain_Add)(OrtCustomOpDomain* domain,
                                                const CustomOp* op);
  // 28, API 1
  OrtStatus*(LNBP_ORT_CALL* AddCustomOpDomain)(OrtSessionOptions* options,
                                               OrtCustomOpDomain* domain);
  Unused<29, 50> unused_29;
  // 51, API 1
  OrtStatus*(LNBP_ORT_CALL* GetTensorMutableData)(OrtValue* value, void** out);
  Unused<52, 54> unused_52;
  // 55, API 1
  OrtStatus*(LNBP_ORT_CALL* CastTypeInfoToTensorInfo)(
      const OrtTypeInfo* type_info, const OrtTensorTypeAndShapeInfo** out);
  Unused<56, 60> unused_56;
  // 61, API 1
  OrtStatus*(LNBP_ORT_CALL* GetDimensionsCount)(
      const OrtTensorTypeAndShapeInfo* info, std::size_t* out);
  // 62, API 1
  OrtStatus*(LNBP_ORT_CALL* GetDimensions)(
      const OrtTensorTypeAndShapeInfo* info, std::int64_t* dims,
      std::size_t count);
  Unused<63, 64> unused_63;
  // 65, API 1
  OrtStatus*(LNBP_ORT_CALL* GetTensorTypeAndShape)(
      const OrtValue* value, OrtTensorTypeAndShapeInfo** out);
  Unused<66, 84> unused_66;
  // 85, API 1
  OrtStatus*(LNBP_ORT_CALL* KernelInfoGetAttribute_float)(
      const OrtKernelInfo* info, const char* name, float* out);
  // 86, API 1
  OrtStatus*(LNBP_ORT_CALL* KernelInfoGetAttribute_int64)(
      const OrtKernelInfo* info, const char* name, std::int64_t* out);
  // 87, API 1
  OrtStatus*(LNBP_ORT_CALL* KernelInfoGetAttribute_string)(
      const OrtKernelInfo* info, const char* name, char* out,
      std::size_t* size);
  Unused<88, 89> unused_88;
  // 90, API 1
  OrtStatus*(LNBP_ORT_CALL* KernelContext_GetInput)(
      const OrtKernelContext* context, std::size_t index, const OrtValue** out);
  // 91, API 1
  OrtStatus*(LNBP_ORT_CALL* KernelContext_GetOutput)(OrtKernelContext* context,
                                                     std::size_t index,
                                                     const std::int64_t* dims,
                                                     std::size_t count,
                                                     OrtValue** out);
  Unused<92, 92> unused_92;
  // 93, API 1
  void(LNBP_ORT_CALL* ReleaseStatus)(OrtStatus* status);
  Unused<94, 97> unused_94;
  // 98, API 1
  void(LNBP_ORT_CALL* ReleaseTypeInfo)(OrtTypeInfo* type_info);
  // 99, API 1
  void(LNBP_ORT_CALL* ReleaseTensorTypeAndShapeInfo)(
      OrtTensorTypeAndShapeInfo* info);
  Unused<100, 100> unused_100;
  // 101, API 1
  void(LNBP_ORT_CALL* ReleaseCustomOpDomain)(OrtCustomOpDomain* domain);
  Unused<102, 161> unused_102;
  // 162, API 8
  OrtStatus*(LNBP_ORT_CALL* KernelInfoGetAttributeArray_float)(
      const OrtKernelInfo* info, const char* name, float* out,
      std::size_t* size);
  // 163, API 8
  OrtStatus*(LNBP_ORT_CALL* KernelInfoGetAttributeArray_int64)(
      const OrtKernelInfo* info, const char* name, std::int64_t* out,
      std::size_t* size);
  Unused<164, 229> unused_164;
  // 230, API 14
  OrtStatus*(LNBP_ORT_CALL* KernelInfo_GetInputCount)(const OrtKernelInfo* info,
                                                      std::size_t* out);
  // 231, API 14
  OrtStatus*(LNBP_ORT_CALL* KernelInfo_GetOutputCount)(
      const OrtKernelInfo* info, std::size_t* out);
  // 232, API 14
  OrtStatus*(LNBP_ORT_CALL* KernelInfo_GetInputName)(const OrtKernelInfo* info,
                                                     std::size_t index,
                                                     char* out,
                                                     std::size_t* size);
  // 233, API 14
  OrtStatus*(LNBP_ORT_CALL* KernelInfo_GetOutputName)(const OrtKernelInfo* info,
                                                      std::size_t index,
                                                      char* out,
                                                      std::size_t* size);
  // 234, API 14
  OrtStatus*(LNBP_ORT_CALL* KernelInfo_GetInputTypeInfo)(
      const OrtKernelInfo* info, std::size_t index, OrtTypeInfo** out);
  Unused<235, 243> unused_235;
  // 244, API 15
  OrtStatus*(LNBP_ORT_CALL* KernelInfo_GetNodeName)(const OrtKernelInfo* info,
                                                    char* out,
                                                    std::size_t* size);
  Unused<245, 273> unused_245;
  // 274, API 17
  OrtStatus*(LNBP_ORT_CALL* KernelContext_ParallelFor)(
      const OrtKernelContext* context, void (*function)(void*, std::size_t),
      std::size_t total, std::size_t num_batches, void* data);
  Unused<275, 413> unused_275;
  // 414, API 24: only there for a caller that asked for kShapeReferenceVersion
  OrtStatus*(LNBP_ORT_CALL* GetTensorElementTypeAndShapeDataReference)(
      const OrtValue* value, TensorElementType* type, const std::int64_t** dims,
      std::size_t* count);
};

struct ApiBase {
  // 0, API 1
  const Api*(LNBP_ORT_CALL* GetApi)(std::uint32_t version);
  // 1, API 1
  const char*(LNBP_ORT_CALL* GetVersionString)();
};

struct CustomOp {
  // API 1. The interface version that the members are filled in for.
  std::uint32_t version;
  void* CreateKernel;  // not used: CreateKernelV2
  // API 1
  const char*(LNBP_ORT_CALL* GetName)(const CustomOp* op);
  const char*(LNBP_ORT_CALL* GetExecutionProviderType)(const CustomOp* op);
  TensorElementType(LNBP_ORT_CALL* GetInputType)(const CustomOp* op,
                                                 std::size_t index);
  std::size_t(LNBP_ORT_CALL* GetInputTypeCount)(const CustomOp* op);
  TensorElementType(LNBP_ORT_CALL* GetOutputType)(const CustomOp* op,
                                                  std::size_t index);
  std::size_t(LNBP_ORT_CALL* GetOutputTypeCount)(const CustomOp* op);
  void* KernelCompute;  // not used: KernelComputeV2
  void(LNBP_ORT_CALL* KernelDestroy)(void* kernel);
  // API 8
  Characteristic(LNBP_ORT_CALL* GetInputCharacteristic)(const CustomOp* op,
                                                        std::size_t index);
  Characteristic(LNBP_ORT_CALL* GetOutputCharacteristic)(const CustomOp* op,
                                                         std::size_t index);
  // API 14
  MemoryType(LNBP_ORT_CALL* GetInputMemoryType)(const CustomOp* op,
                                                std::size_t index);
  // API 14, not used: of variadic inputs and outputs
  void* GetVariadicInputMinArity;
  void* GetVariadicInputHomogeneity;
  void* GetVariadicOutputMinArity;
  void* GetVariadicOutputHomogeneity;
  // API 16
  OrtStatus*(LNBP_ORT_CALL* CreateKernelV2)(const CustomOp* op, const Api* api,
                                            const OrtKernelInfo* info,
                                            void** kernel);
  OrtStatus*(LNBP_ORT_CALL* KernelComputeV2)(void* kernel,
                                             OrtKernelContext* context);
  // API 17
  void* InferOutputShapeFn;  // must be null: see overload.cc
  int(LNBP_ORT_CALL* GetStartVersion)(const CustomOp* op);
  int(LNBP_ORT_CALL* GetEndVersion)(const CustomOp* op);
  // API 18
  std::size_t(LNBP_ORT_CALL* GetMayInplace)(int** inputs, int** outputs);
  void(LNBP_ORT_CALL* ReleaseMayInplace)(int* inputs, int* outputs);
  void* GetAliasMap;      // not used
  void* ReleaseAliasMap;  // not used
};

}  // namespace lnbp::ort

#endif  // LNBP_ONNX_ORT_ABI_H_
