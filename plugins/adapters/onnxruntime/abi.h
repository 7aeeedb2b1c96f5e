// What the operator library and the runtime (plugins/runtime) use of ONNX Runtime's C API, declared here so
// that a compiler is all that a build needs; C++14. The ABI only grows: a function keeps its place in the
// table and its signature for good. Where the runtime's own header can be had,
// tests/plugins/check_ort_abi.cpp holds every declaration against it.
#pragma once

#include <cstddef>
#include <cstdint>

struct OrtAllocator;
struct OrtArenaCfg;
struct OrtCustomOpDomain;
struct OrtEnv;
struct OrtIoBinding;
struct OrtKernelContext;
struct OrtKernelInfo;
struct OrtMemoryInfo;
struct OrtOpAttr;
struct OrtRunOptions;
struct OrtSession;
struct OrtSessionOptions;
struct OrtShapeInferContext;
struct OrtStatus;
struct OrtTensorTypeAndShapeInfo;
struct OrtTypeInfo;
struct OrtValue;

namespace dyndeploy {
namespace ort {
namespace abi {

// The oldest API that has everything used here: ONNX Runtime 1.18 (in-place hints of custom operators).
constexpr std::uint32_t kVersion = 18;

#if defined(_WIN32)
#define DYNDEPLOY_ORT_CALL __stdcall
#else
#define DYNDEPLOY_ORT_CALL
#endif

enum class ErrorCode : int { kFail = 1, kInvalidArgument = 2, kRuntimeException = 6 };
enum class ElementType : int {
  kFloat = 1,
  kUint8 = 2,
  kInt8 = 3,
  kInt32 = 6,
  kInt64 = 7,
  kBool = 9,
  kFloat16 = 10,
  kDouble = 11
};
enum class AttributeType : int { kInt = 1, kInts = 2 };
enum class Characteristic : int { kRequired = 0 };
enum class MemoryType : int { kDefault = 0 };
enum class AllocatorType : int { kDevice = 0, kArena = 1 };
enum class LoggingLevel : int { kFatal = 4 };

// The runtime's functions: a table of pointers, of which a version has a known number.
struct Table {
  using Function = void (*)();
  Function functions[275];
};

struct Base {
  const Table*(DYNDEPLOY_ORT_CALL* GetApi)(std::uint32_t version);
  const char*(DYNDEPLOY_ORT_CALL* GetVersionString)();
};

// An operator, which a library describes to the runtime by callbacks; those that are null have a default.
struct CustomOp {
  std::uint32_t version;
  void*(DYNDEPLOY_ORT_CALL* CreateKernel)(const CustomOp*, const Table*, const OrtKernelInfo*);
  const char*(DYNDEPLOY_ORT_CALL* GetName)(const CustomOp*);
  const char*(DYNDEPLOY_ORT_CALL* GetExecutionProviderType)(const CustomOp*);
  ElementType(DYNDEPLOY_ORT_CALL* GetInputType)(const CustomOp*, std::size_t);
  std::size_t(DYNDEPLOY_ORT_CALL* GetInputTypeCount)(const CustomOp*);
  ElementType(DYNDEPLOY_ORT_CALL* GetOutputType)(const CustomOp*, std::size_t);
  std::size_t(DYNDEPLOY_ORT_CALL* GetOutputTypeCount)(const CustomOp*);
  void(DYNDEPLOY_ORT_CALL* KernelCompute)(void* kernel, OrtKernelContext*);
  void(DYNDEPLOY_ORT_CALL* KernelDestroy)(void* kernel);
  Characteristic(DYNDEPLOY_ORT_CALL* GetInputCharacteristic)(const CustomOp*, std::size_t);
  Characteristic(DYNDEPLOY_ORT_CALL* GetOutputCharacteristic)(const CustomOp*, std::size_t);
  MemoryType(DYNDEPLOY_ORT_CALL* GetInputMemoryType)(const CustomOp*, std::size_t);
  int(DYNDEPLOY_ORT_CALL* GetVariadicInputMinArity)(const CustomOp*);
  int(DYNDEPLOY_ORT_CALL* GetVariadicInputHomogeneity)(const CustomOp*);
  int(DYNDEPLOY_ORT_CALL* GetVariadicOutputMinArity)(const CustomOp*);
  int(DYNDEPLOY_ORT_CALL* GetVariadicOutputHomogeneity)(const CustomOp*);
  OrtStatus*(DYNDEPLOY_ORT_CALL* CreateKernelV2)(const CustomOp*, const Table*, const OrtKernelInfo*,
                                                 void** kernel);
  OrtStatus*(DYNDEPLOY_ORT_CALL* KernelComputeV2)(void* kernel, OrtKernelContext*);
  OrtStatus*(DYNDEPLOY_ORT_CALL* InferOutputShapeFn)(const CustomOp*, OrtShapeInferContext*);
  int(DYNDEPLOY_ORT_CALL* GetStartVersion)(const CustomOp*);
  int(DYNDEPLOY_ORT_CALL* GetEndVersion)(const CustomOp*);
  std::size_t(DYNDEPLOY_ORT_CALL* GetMayInplace)(int** inputs, int** outputs);
  void(DYNDEPLOY_ORT_CALL* ReleaseMayInplace)(int* inputs, int* outputs);
  std::size_t(DYNDEPLOY_ORT_CALL* GetAliasMap)(int** inputs, int** outputs);
  void(DYNDEPLOY_ORT_CALL* ReleaseAliasMap)(int* inputs, int* outputs);
};

// Place in the table, name, result, parameters.
#define DYNDEPLOY_ORT_FUNCTIONS(F)                                                                           \
  F(0, CreateStatus, OrtStatus*, (ErrorCode, const char*))                                                   \
  F(1, GetErrorCode, ErrorCode, (const OrtStatus*))                                                          \
  F(2, GetErrorMessage, const char*, (const OrtStatus*))                                                     \
  F(26, CreateCustomOpDomain, OrtStatus*, (const char*, OrtCustomOpDomain**))                                \
  F(27, CustomOpDomain_Add, OrtStatus*, (OrtCustomOpDomain*, const CustomOp*))                               \
  F(28, AddCustomOpDomain, OrtStatus*, (OrtSessionOptions*, OrtCustomOpDomain*))                             \
  F(50, IsTensor, OrtStatus*, (const OrtValue*, int*))                                                       \
  F(51, GetTensorMutableData, OrtStatus*, (OrtValue*, void**))                                               \
  F(55, CastTypeInfoToTensorInfo, OrtStatus*, (const OrtTypeInfo*, const OrtTensorTypeAndShapeInfo**))       \
  F(57, CreateTensorTypeAndShapeInfo, OrtStatus*, (OrtTensorTypeAndShapeInfo**))                             \
  F(58, SetTensorElementType, OrtStatus*, (OrtTensorTypeAndShapeInfo*, ElementType))                         \
  F(59, SetDimensions, OrtStatus*, (OrtTensorTypeAndShapeInfo*, const std::int64_t*, std::size_t))           \
  F(60, GetTensorElementType, OrtStatus*, (const OrtTensorTypeAndShapeInfo*, ElementType*))                  \
  F(61, GetDimensionsCount, OrtStatus*, (const OrtTensorTypeAndShapeInfo*, std::size_t*))                    \
  F(62, GetDimensions, OrtStatus*, (const OrtTensorTypeAndShapeInfo*, std::int64_t*, std::size_t))           \
  F(63, GetSymbolicDimensions, OrtStatus*, (const OrtTensorTypeAndShapeInfo*, const char**, std::size_t))    \
  F(65, GetTensorTypeAndShape, OrtStatus*, (const OrtValue*, OrtTensorTypeAndShapeInfo**))                   \
  F(85, KernelInfoGetAttribute_float, OrtStatus*, (const OrtKernelInfo*, const char*, float*))               \
  F(86, KernelInfoGetAttribute_int64, OrtStatus*, (const OrtKernelInfo*, const char*, std::int64_t*))        \
  F(87, KernelInfoGetAttribute_string, OrtStatus*, (const OrtKernelInfo*, const char*, char*, std::size_t*)) \
  F(90, KernelContext_GetInput, OrtStatus*, (const OrtKernelContext*, std::size_t, const OrtValue**))        \
  F(91, KernelContext_GetOutput, OrtStatus*,                                                                 \
    (OrtKernelContext*, std::size_t, const std::int64_t*, std::size_t, OrtValue**))                          \
  F(93, ReleaseStatus, void, (OrtStatus*))                                                                   \
  F(98, ReleaseTypeInfo, void, (OrtTypeInfo*))                                                               \
  F(99, ReleaseTensorTypeAndShapeInfo, void, (OrtTensorTypeAndShapeInfo*))                                   \
  F(162, KernelInfoGetAttributeArray_float, OrtStatus*,                                                      \
    (const OrtKernelInfo*, const char*, float*, std::size_t*))                                               \
  F(163, KernelInfoGetAttributeArray_int64, OrtStatus*,                                                      \
    (const OrtKernelInfo*, const char*, std::int64_t*, std::size_t*))                                        \
  F(230, KernelInfo_GetInputCount, OrtStatus*, (const OrtKernelInfo*, std::size_t*))                         \
  F(234, KernelInfo_GetInputTypeInfo, OrtStatus*, (const OrtKernelInfo*, std::size_t, OrtTypeInfo**))        \
  F(237, HasSessionConfigEntry, OrtStatus*, (const OrtSessionOptions*, const char*, int*))                   \
  F(238, GetSessionConfigEntry, OrtStatus*, (const OrtSessionOptions*, const char*, char*, std::size_t*))    \
  F(249, KernelInfoGetConstantInput_tensor, OrtStatus*,                                                      \
    (const OrtKernelInfo*, std::size_t, int*, const OrtValue**))                                             \
  F(268, ShapeInferContext_GetInputTypeShape, OrtStatus*,                                                    \
    (const OrtShapeInferContext*, std::size_t, OrtTensorTypeAndShapeInfo**))                                 \
  F(269, ShapeInferContext_GetAttribute, OrtStatus*,                                                         \
    (const OrtShapeInferContext*, const char*, const OrtOpAttr**))                                           \
  F(270, ShapeInferContext_SetOutputTypeShape, OrtStatus*,                                                   \
    (const OrtShapeInferContext*, std::size_t, const OrtTensorTypeAndShapeInfo*))                            \
  F(271, SetSymbolicDimensions, OrtStatus*, (OrtTensorTypeAndShapeInfo*, const char**, std::size_t))         \
  F(272, ReadOpAttr, OrtStatus*, (const OrtOpAttr*, AttributeType, void*, std::size_t, std::size_t*))        \
  F(274, KernelContext_ParallelFor, OrtStatus*,                                                              \
    (const OrtKernelContext*, void (*)(void*, std::size_t), std::size_t, std::size_t, void*))

// The same of what whoever opens sessions calls.
#define DYNDEPLOY_ORT_HOST_FUNCTIONS(F)                                                                    \
  F(2, GetErrorMessage, const char*, (const OrtStatus*))                                                   \
  F(3, CreateEnv, OrtStatus*, (LoggingLevel, const char*, OrtEnv**))                                       \
  F(7, CreateSession, OrtStatus*, (const OrtEnv*, const char*, const OrtSessionOptions*, OrtSession**))    \
  F(10, CreateSessionOptions, OrtStatus*, (OrtSessionOptions**))                                           \
  F(22, SetSessionLogSeverityLevel, OrtStatus*, (OrtSessionOptions*, int))                                 \
  F(24, SetIntraOpNumThreads, OrtStatus*, (OrtSessionOptions*, int))                                       \
  F(25, SetInterOpNumThreads, OrtStatus*, (OrtSessionOptions*, int))                                       \
  F(30, SessionGetInputCount, OrtStatus*, (const OrtSession*, std::size_t*))                               \
  F(31, SessionGetOutputCount, OrtStatus*, (const OrtSession*, std::size_t*))                              \
  F(33, SessionGetInputTypeInfo, OrtStatus*, (const OrtSession*, std::size_t, OrtTypeInfo**))              \
  F(34, SessionGetOutputTypeInfo, OrtStatus*, (const OrtSession*, std::size_t, OrtTypeInfo**))             \
  F(36, SessionGetInputName, OrtStatus*, (const OrtSession*, std::size_t, OrtAllocator*, char**))          \
  F(37, SessionGetOutputName, OrtStatus*, (const OrtSession*, std::size_t, OrtAllocator*, char**))         \
  F(49, CreateTensorWithDataAsOrtValue, OrtStatus*,                                                        \
    (const OrtMemoryInfo*, void*, std::size_t, const std::int64_t*, std::size_t, ElementType, OrtValue**)) \
  F(55, CastTypeInfoToTensorInfo, OrtStatus*, (const OrtTypeInfo*, const OrtTensorTypeAndShapeInfo**))     \
  F(60, GetTensorElementType, OrtStatus*, (const OrtTensorTypeAndShapeInfo*, ElementType*))                \
  F(61, GetDimensionsCount, OrtStatus*, (const OrtTensorTypeAndShapeInfo*, std::size_t*))                  \
  F(62, GetDimensions, OrtStatus*, (const OrtTensorTypeAndShapeInfo*, std::int64_t*, std::size_t))         \
  F(69, CreateCpuMemoryInfo, OrtStatus*, (AllocatorType, MemoryType, OrtMemoryInfo**))                     \
  F(76, AllocatorFree, OrtStatus*, (OrtAllocator*, void*))                                                 \
  F(78, GetAllocatorWithDefaultOptions, OrtStatus*, (OrtAllocator**))                                      \
  F(92, ReleaseEnv, void, (OrtEnv*))                                                                       \
  F(93, ReleaseStatus, void, (OrtStatus*))                                                                 \
  F(94, ReleaseMemoryInfo, void, (OrtMemoryInfo*))                                                         \
  F(95, ReleaseSession, void, (OrtSession*))                                                               \
  F(96, ReleaseValue, void, (OrtValue*))                                                                   \
  F(98, ReleaseTypeInfo, void, (OrtTypeInfo*))                                                             \
  F(100, ReleaseSessionOptions, void, (OrtSessionOptions*))                                                \
  F(130, AddSessionConfigEntry, OrtStatus*, (OrtSessionOptions*, const char*, const char*))                \
  F(133, RunWithBinding, OrtStatus*, (OrtSession*, const OrtRunOptions*, const OrtIoBinding*))             \
  F(134, CreateIoBinding, OrtStatus*, (OrtSession*, OrtIoBinding**))                                       \
  F(135, ReleaseIoBinding, void, (OrtIoBinding*))                                                          \
  F(136, BindInput, OrtStatus*, (OrtIoBinding*, const char*, const OrtValue*))                             \
  F(137, BindOutput, OrtStatus*, (OrtIoBinding*, const char*, const OrtValue*))                            \
  F(144, CreateAndRegisterAllocator, OrtStatus*, (OrtEnv*, const OrtMemoryInfo*, const OrtArenaCfg*))      \
  F(228, RegisterCustomOpsLibrary_V2, OrtStatus*, (OrtSessionOptions*, const char*))

// The functions of one runtime by name.
#define DYNDEPLOY_ORT_MEMBER(POSITION, NAME, RESULT, PARAMETERS) RESULT(DYNDEPLOY_ORT_CALL* NAME) PARAMETERS;
#define DYNDEPLOY_ORT_FETCH(POSITION, NAME, RESULT, PARAMETERS) \
  NAME = reinterpret_cast<decltype(NAME)>(table.functions[POSITION]);

// For operators.
struct Api {
  DYNDEPLOY_ORT_FUNCTIONS(DYNDEPLOY_ORT_MEMBER)
  explicit Api(const Table& table) { DYNDEPLOY_ORT_FUNCTIONS(DYNDEPLOY_ORT_FETCH) }
};

// For whoever opens sessions.
struct HostApi {
  DYNDEPLOY_ORT_HOST_FUNCTIONS(DYNDEPLOY_ORT_MEMBER)
  explicit HostApi(const Table& table) { DYNDEPLOY_ORT_HOST_FUNCTIONS(DYNDEPLOY_ORT_FETCH) }
};

#undef DYNDEPLOY_ORT_MEMBER
#undef DYNDEPLOY_ORT_FETCH

}  // namespace abi
}  // namespace ort
}  // namespace dyndeploy
