// SPDX-License-Identifier: Apache-2.0
//
// Compares ort_abi.h with ONNX Runtime's own header: it compiles or it does
// not.

#include <cstddef>
#include <type_traits>

#include "element_types.h"
#include "onnxruntime_c_api.h"
#include "ort_abi.h"

static_assert(ORT_API_VERSION >= lnbp::ort::kMayInplaceVersion,
              "the header is older than what is declared");

namespace {

// A type of ours, written with the official names.
template <typename T>
struct OfficialType {
  using type = T;
};
template <typename T>
using Official = typename OfficialType<T>::type;

template <>
struct OfficialType<lnbp::ort::Api> {
  using type = ::OrtApi;
};
template <>
struct OfficialType<lnbp::ort::CustomOp> {
  using type = ::OrtCustomOp;
};
template <>
struct OfficialType<lnbp::ort::ErrorCode> {
  using type = ::OrtErrorCode;
};
template <>
struct OfficialType<lnbp::ort::TensorElementType> {
  using type = ::ONNXTensorElementDataType;
};
template <>
struct OfficialType<lnbp::ort::Characteristic> {
  using type = ::OrtCustomOpInputOutputCharacteristic;
};
template <>
struct OfficialType<lnbp::ort::MemoryType> {
  using type = ::OrtMemType;
};
template <typename T>
struct OfficialType<const T> {
  using type = const Official<T>;
};
template <typename T>
struct OfficialType<T*> {
  using type = Official<T>*;
};
template <typename Result, typename... Parameters>
struct OfficialType<Result(LNBP_ORT_CALL*)(Parameters...)> {
  using type = Official<Result>(ORT_API_CALL*)(Official<Parameters>...);
};

// The official functions promise not to throw; that is no part of a call.
template <typename T>
struct WithoutNoexcept {
  using type = T;
};
template <typename Result, typename... Parameters>
struct WithoutNoexcept<Result(ORT_API_CALL*)(Parameters...) noexcept> {
  using type = Result(ORT_API_CALL*)(Parameters...);
};

template <typename Ours, typename Theirs>
inline constexpr bool kSameSignature =
    std::is_same_v<Official<Ours>, typename WithoutNoexcept<Theirs>::type>;

static_assert(kSameSignature<int (*)(const lnbp::ort::CustomOp*),
                             int (*)(const ::OrtCustomOp*) noexcept>);
static_assert(!kSameSignature<int (*)(const lnbp::ort::CustomOp*),
                              int (*)(::OrtCustomOp*)>);

#define LNBP_CHECK(ours, theirs, member)                               \
  static_assert(                                                       \
      offsetof(lnbp::ort::ours, member) == offsetof(::theirs, member), \
      "offset of " #member);                                           \
  static_assert(kSameSignature<decltype(lnbp::ort::ours::member),      \
                               decltype(::theirs::member)>,            \
                "signature of " #member)
#define LNBP_CHECK_POSITION(index, member)                             \
  LNBP_CHECK(Api, OrtApi, member);                                     \
  static_assert(offsetof(::OrtApi, member) == (index) * sizeof(void*), \
                "position of " #member)

LNBP_CHECK_POSITION(0, CreateStatus);
LNBP_CHECK_POSITION(26, CreateCustomOpDomain);
LNBP_CHECK_POSITION(27, CustomOpDomain_Add);
LNBP_CHECK_POSITION(28, AddCustomOpDomain);
LNBP_CHECK_POSITION(51, GetTensorMutableData);
LNBP_CHECK_POSITION(55, CastTypeInfoToTensorInfo);
LNBP_CHECK_POSITION(61, GetDimensionsCount);
LNBP_CHECK_POSITION(62, GetDimensions);
LNBP_CHECK_POSITION(65, GetTensorTypeAndShape);
LNBP_CHECK_POSITION(85, KernelInfoGetAttribute_float);
LNBP_CHECK_POSITION(86, KernelInfoGetAttribute_int64);
LNBP_CHECK_POSITION(87, KernelInfoGetAttribute_string);
LNBP_CHECK_POSITION(90, KernelContext_GetInput);
LNBP_CHECK_POSITION(91, KernelContext_GetOutput);
LNBP_CHECK_POSITION(93, ReleaseStatus);
LNBP_CHECK_POSITION(98, ReleaseTypeInfo);
LNBP_CHECK_POSITION(99, ReleaseTensorTypeAndShapeInfo);
LNBP_CHECK_POSITION(101, ReleaseCustomOpDomain);
LNBP_CHECK_POSITION(162, KernelInfoGetAttributeArray_float);
LNBP_CHECK_POSITION(163, KernelInfoGetAttributeArray_int64);
LNBP_CHECK_POSITION(230, KernelInfo_GetInputCount);
LNBP_CHECK_POSITION(231, KernelInfo_GetOutputCount);
LNBP_CHECK_POSITION(232, KernelInfo_GetInputName);
LNBP_CHECK_POSITION(233, KernelInfo_GetOutputName);
LNBP_CHECK_POSITION(234, KernelInfo_GetInputTypeInfo);
LNBP_CHECK_POSITION(244, KernelInfo_GetNodeName);
LNBP_CHECK_POSITION(274, KernelContext_ParallelFor);
#if ORT_API_VERSION >= 24
LNBP_CHECK_POSITION(414, GetTensorElementTypeAndShapeDataReference);
#endif

LNBP_CHECK(ApiBase, OrtApiBase, GetVersionString);
static_assert(offsetof(lnbp::ort::ApiBase, GetApi) ==
              offsetof(::OrtApiBase, GetApi));
static_assert(kSameSignature<decltype(lnbp::ort::ApiBase::GetApi),
                             decltype(::OrtApiBase::GetApi)>);

LNBP_CHECK(CustomOp, OrtCustomOp, GetName);
LNBP_CHECK(CustomOp, OrtCustomOp, GetExecutionProviderType);
LNBP_CHECK(CustomOp, OrtCustomOp, GetInputType);
LNBP_CHECK(CustomOp, OrtCustomOp, GetInputTypeCount);
LNBP_CHECK(CustomOp, OrtCustomOp, GetOutputType);
LNBP_CHECK(CustomOp, OrtCustomOp, GetOutputTypeCount);
LNBP_CHECK(CustomOp, OrtCustomOp, KernelDestroy);
LNBP_CHECK(CustomOp, OrtCustomOp, GetInputCharacteristic);
LNBP_CHECK(CustomOp, OrtCustomOp, GetOutputCharacteristic);
LNBP_CHECK(CustomOp, OrtCustomOp, GetInputMemoryType);
LNBP_CHECK(CustomOp, OrtCustomOp, CreateKernelV2);
LNBP_CHECK(CustomOp, OrtCustomOp, KernelComputeV2);
LNBP_CHECK(CustomOp, OrtCustomOp, GetStartVersion);
LNBP_CHECK(CustomOp, OrtCustomOp, GetEndVersion);
LNBP_CHECK(CustomOp, OrtCustomOp, GetMayInplace);
LNBP_CHECK(CustomOp, OrtCustomOp, ReleaseMayInplace);
static_assert(offsetof(lnbp::ort::CustomOp, version) ==
              offsetof(::OrtCustomOp, version));
static_assert(std::is_same_v<decltype(lnbp::ort::CustomOp::version),
                             decltype(::OrtCustomOp::version)>);
static_assert(offsetof(lnbp::ort::CustomOp, InferOutputShapeFn) ==
              offsetof(::OrtCustomOp, InferOutputShapeFn));
static_assert(offsetof(lnbp::ort::CustomOp, ReleaseAliasMap) ==
              offsetof(::OrtCustomOp, ReleaseAliasMap));

static_assert(static_cast<int>(lnbp::ort::kFail) ==
              static_cast<int>(::ORT_FAIL));
static_assert(static_cast<int>(lnbp::ort::kInvalidArgument) ==
              static_cast<int>(::ORT_INVALID_ARGUMENT));
static_assert(static_cast<int>(lnbp::ort::kOptional) ==
              static_cast<int>(::INPUT_OUTPUT_OPTIONAL));
static_assert(static_cast<int>(lnbp::ort::kMemoryTypeDefault) ==
              static_cast<int>(::OrtMemTypeDefault));
static_assert(sizeof(lnbp::ort::ErrorCode) == sizeof(::OrtErrorCode));
static_assert(sizeof(lnbp::ort::TensorElementType) ==
              sizeof(::ONNXTensorElementDataType));
static_assert(sizeof(lnbp::ort::Characteristic) ==
              sizeof(::OrtCustomOpInputOutputCharacteristic));
static_assert(sizeof(lnbp::ort::MemoryType) == sizeof(::OrtMemType));

#define LNBP_CHECK_TYPE(ours, theirs)                        \
  static_assert(static_cast<int>(lnbp::ElementType::ours) == \
                static_cast<int>(::ONNX_TENSOR_ELEMENT_DATA_TYPE_##theirs))

LNBP_CHECK_TYPE(kFloat, FLOAT);
LNBP_CHECK_TYPE(kUint8, UINT8);
LNBP_CHECK_TYPE(kInt8, INT8);
LNBP_CHECK_TYPE(kUint16, UINT16);
LNBP_CHECK_TYPE(kInt16, INT16);
LNBP_CHECK_TYPE(kInt32, INT32);
LNBP_CHECK_TYPE(kInt64, INT64);
LNBP_CHECK_TYPE(kFloat16, FLOAT16);
LNBP_CHECK_TYPE(kDouble, DOUBLE);
LNBP_CHECK_TYPE(kUint32, UINT32);
LNBP_CHECK_TYPE(kUint64, UINT64);
LNBP_CHECK_TYPE(kBfloat16, BFLOAT16);

}  // namespace
