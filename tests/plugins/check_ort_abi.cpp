// Compiled, not run: every declaration of plugins/adapters/onnxruntime/abi.h against ONNX Runtime's own
// header.
#include <onnxruntime_c_api.h>

#include <cstddef>
#include <type_traits>

#include "abi.h"

namespace {

namespace abi = dyndeploy::ort::abi;

// Whether two types are passed alike: the same, enumerations of one size, or pointers to what is alike.
template <class Real, class Ours>
constexpr bool same_value() {
  if constexpr (std::is_enum_v<Real> && std::is_enum_v<Ours>) return sizeof(Real) == sizeof(Ours);
  return std::is_same_v<Real, Ours>;
}
template <class Real, class Ours>
struct Alike : std::bool_constant<same_value<Real, Ours>()> {};
template <>
struct Alike<OrtApi, abi::Table> : std::true_type {};
template <>
struct Alike<OrtApiBase, abi::Base> : std::true_type {};
template <>
struct Alike<OrtCustomOp, abi::CustomOp> : std::true_type {};
template <class Real, class Ours>
struct Alike<Real*, Ours*>
    : std::bool_constant<std::is_const_v<Real> == std::is_const_v<Ours> &&
                         Alike<std::remove_const_t<Real>, std::remove_const_t<Ours>>::value> {};
template <class R, class... A, class S, class... B>
struct Alike<R (*)(A...), S (*)(B...)> : std::conjunction<Alike<R, S>, Alike<A, B>...> {};
template <class R, class... A, class S, class... B>
struct Alike<R (*)(A...) noexcept, S (*)(B...)> : Alike<R (*)(A...), S (*)(B...)> {};

#define CHECK_FUNCTION(TABLE, POSITION, NAME)                                                               \
  static_assert(offsetof(::OrtApi, NAME) == POSITION * sizeof(abi::Table::Function), #NAME " moved");       \
  static_assert(Alike<decltype(::OrtApi::NAME), decltype(abi::TABLE::NAME)>::value, "signature of " #NAME); \
  static_assert(POSITION < sizeof(abi::Table::functions) / sizeof(abi::Table::Function), #NAME);
#define CHECK_OPERATORS(POSITION, NAME, RESULT, PARAMETERS) CHECK_FUNCTION(Api, POSITION, NAME)
#define CHECK_HOST(POSITION, NAME, RESULT, PARAMETERS) CHECK_FUNCTION(HostApi, POSITION, NAME)
DYNDEPLOY_ORT_FUNCTIONS(CHECK_OPERATORS)
DYNDEPLOY_ORT_HOST_FUNCTIONS(CHECK_HOST)

#define CHECK_MEMBER(TYPE, OURS, NAME)                                                           \
  static_assert(offsetof(::TYPE, NAME) == offsetof(abi::OURS, NAME), #TYPE "::" #NAME " moved"); \
  static_assert(Alike<decltype(::TYPE::NAME), decltype(abi::OURS::NAME)>::value, #TYPE "::" #NAME);
CHECK_MEMBER(OrtApiBase, Base, GetApi)
CHECK_MEMBER(OrtApiBase, Base, GetVersionString)
CHECK_MEMBER(OrtCustomOp, CustomOp, version)
CHECK_MEMBER(OrtCustomOp, CustomOp, CreateKernel)
CHECK_MEMBER(OrtCustomOp, CustomOp, GetName)
CHECK_MEMBER(OrtCustomOp, CustomOp, GetExecutionProviderType)
CHECK_MEMBER(OrtCustomOp, CustomOp, GetInputType)
CHECK_MEMBER(OrtCustomOp, CustomOp, GetInputTypeCount)
CHECK_MEMBER(OrtCustomOp, CustomOp, GetOutputType)
CHECK_MEMBER(OrtCustomOp, CustomOp, GetOutputTypeCount)
CHECK_MEMBER(OrtCustomOp, CustomOp, KernelCompute)
CHECK_MEMBER(OrtCustomOp, CustomOp, KernelDestroy)
CHECK_MEMBER(OrtCustomOp, CustomOp, GetInputCharacteristic)
CHECK_MEMBER(OrtCustomOp, CustomOp, GetOutputCharacteristic)
CHECK_MEMBER(OrtCustomOp, CustomOp, GetInputMemoryType)
CHECK_MEMBER(OrtCustomOp, CustomOp, GetVariadicInputMinArity)
CHECK_MEMBER(OrtCustomOp, CustomOp, GetVariadicInputHomogeneity)
CHECK_MEMBER(OrtCustomOp, CustomOp, GetVariadicOutputMinArity)
CHECK_MEMBER(OrtCustomOp, CustomOp, GetVariadicOutputHomogeneity)
CHECK_MEMBER(OrtCustomOp, CustomOp, CreateKernelV2)
CHECK_MEMBER(OrtCustomOp, CustomOp, KernelComputeV2)
CHECK_MEMBER(OrtCustomOp, CustomOp, InferOutputShapeFn)
CHECK_MEMBER(OrtCustomOp, CustomOp, GetStartVersion)
CHECK_MEMBER(OrtCustomOp, CustomOp, GetEndVersion)
CHECK_MEMBER(OrtCustomOp, CustomOp, GetMayInplace)
CHECK_MEMBER(OrtCustomOp, CustomOp, ReleaseMayInplace)
CHECK_MEMBER(OrtCustomOp, CustomOp, GetAliasMap)
CHECK_MEMBER(OrtCustomOp, CustomOp, ReleaseAliasMap)
static_assert(sizeof(abi::CustomOp) <= sizeof(::OrtCustomOp), "OrtCustomOp");

#define CHECK_VALUE(REAL, OURS) static_assert(static_cast<int>(REAL) == static_cast<int>(abi::OURS), #REAL);
CHECK_VALUE(ORT_FAIL, ErrorCode::kFail)
CHECK_VALUE(ORT_INVALID_ARGUMENT, ErrorCode::kInvalidArgument)
CHECK_VALUE(ORT_RUNTIME_EXCEPTION, ErrorCode::kRuntimeException)
CHECK_VALUE(ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, ElementType::kFloat)
CHECK_VALUE(ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, ElementType::kUint8)
CHECK_VALUE(ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8, ElementType::kInt8)
CHECK_VALUE(ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32, ElementType::kInt32)
CHECK_VALUE(ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64, ElementType::kInt64)
CHECK_VALUE(ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL, ElementType::kBool)
CHECK_VALUE(ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16, ElementType::kFloat16)
CHECK_VALUE(ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE, ElementType::kDouble)
CHECK_VALUE(OrtDeviceAllocator, AllocatorType::kDevice)
CHECK_VALUE(OrtArenaAllocator, AllocatorType::kArena)
CHECK_VALUE(ORT_LOGGING_LEVEL_FATAL, LoggingLevel::kFatal)
CHECK_VALUE(ORT_OP_ATTR_INT, AttributeType::kInt)
CHECK_VALUE(ORT_OP_ATTR_INTS, AttributeType::kInts)
CHECK_VALUE(INPUT_OUTPUT_REQUIRED, Characteristic::kRequired)
CHECK_VALUE(OrtMemTypeDefault, MemoryType::kDefault)
static_assert(abi::kVersion <= ORT_API_VERSION, "this header is older than what the library asks for");

}  // namespace
