// The abi::CustomOp of one operator of the table, made from the kernel class of its kind:
//
//   class Kernel {
//    public:
//     static bool in_place(const tables::Operator&);        // the output may take the place of input 0
//     static void infer(const tables::Operator&, const ShapeInference&);
//     Kernel(const tables::Operator&, const KernelInfo&, const Registration&);
//     void compute(KernelContext&);                         // may be called by several threads at a time
//   };
#pragma once

#include <mutex>

#include "gemm.h"
#include "ort_support.h"
#include "quantized_gemm.h"

namespace dyndeploy::ort {

// What all operators of one registration share. Lives as long as the library.
class Registration {
 public:
  Registration(const cpu::Isa& isa, const cpu::QuantizedIsa& quantized_isa, int threads)
      : isa_(isa), quantized_isa_(quantized_isa), threads_(threads) {}
  const cpu::Isa& isa() const { return isa_; }
  const cpu::QuantizedIsa& quantized_isa() const { return quantized_isa_; }
  int threads() const { return threads_; }
  // Kernels keep the pool alive; it is freed with the last session that uses it.
  std::shared_ptr<cpu::WorkspacePool> workspaces() const;
  // For what kernels keep.
  cpu::Arena& arena() const { return arena_; }

 private:
  const cpu::Isa& isa_;
  const cpu::QuantizedIsa& quantized_isa_;
  int threads_;
  mutable cpu::Arena arena_;
  mutable std::mutex mutex_;
  mutable std::weak_ptr<cpu::WorkspacePool> workspaces_;
};

// Shape inference on a node: sizes that are not known are negative, symbolic sizes keep their names.
class ShapeInference {
 public:
  struct Dim {
    std::int64_t size = -1;
    std::string name;
  };
  using Shape = std::vector<Dim>;

  ShapeInference(const Api& api, OrtShapeInferContext* context, abi::ElementType output)
      : api_(api), context_(context), output_(output) {}
  // Empty when the rank is not known.
  Shape input(std::size_t index) const;
  std::int64_t integer(const char* name, std::int64_t fallback) const;
  std::vector<std::int64_t> integers(const char* name) const;
  void set_output(const Shape& shape) const;

 private:
  const Api& api_;
  OrtShapeInferContext* context_;
  abi::ElementType output_;
};

template <class Kernel>
class CustomOp : public abi::CustomOp {
 public:
  CustomOp(const tables::Operator& op, const Api& api, const Registration& registration)
      : abi::CustomOp{}, op_(op), api_(api), registration_(registration) {
    version = abi::kVersion;
    CreateKernelV2 = [](const abi::CustomOp* self, const abi::Table*, const OrtKernelInfo* info,
                        void** kernel) {
      const Api& api = of(self).api_;
      return guarded(api, [&] {
        const tables::Operator& op = of(self).op_;
        *kernel = new Instance{api, Kernel(op, KernelInfo(api, info, op.name), of(self).registration_)};
      });
    };
    KernelComputeV2 = [](void* kernel, OrtKernelContext* context) {
      auto& instance = *static_cast<Instance*>(kernel);
      return guarded(instance.api, [&] {
        KernelContext wrapped(instance.api, context);
        instance.kernel.compute(wrapped);
      });
    };
    KernelDestroy = [](void* kernel) { delete static_cast<Instance*>(kernel); };
    GetName = [](const abi::CustomOp* self) { return of(self).op_.name; };
    GetExecutionProviderType = [](const abi::CustomOp*) -> const char* { return "CPUExecutionProvider"; };
    GetInputTypeCount = [](const abi::CustomOp* self) {
      return static_cast<std::size_t>(of(self).op_.input_count);
    };
    GetInputType = [](const abi::CustomOp* self, std::size_t input) {
      return element_type(of(self).op_.inputs[input].element);
    };
    GetOutputTypeCount = [](const abi::CustomOp*) { return std::size_t{1}; };
    GetOutputType = [](const abi::CustomOp* self, std::size_t) {
      return element_type(of(self).op_.output.element);
    };
    GetInputCharacteristic = [](const abi::CustomOp*, std::size_t) { return abi::Characteristic::kRequired; };
    GetOutputCharacteristic = GetInputCharacteristic;
    GetInputMemoryType = [](const abi::CustomOp*, std::size_t) { return abi::MemoryType::kDefault; };
    GetVariadicInputMinArity = [](const abi::CustomOp*) { return 1; };
    GetVariadicInputHomogeneity = GetVariadicInputMinArity;
    GetVariadicOutputMinArity = GetVariadicInputMinArity;
    GetVariadicOutputHomogeneity = GetVariadicInputMinArity;
    InferOutputShapeFn = [](const abi::CustomOp* self, OrtShapeInferContext* context) {
      return guarded(of(self).api_, [&] {
        const tables::Operator& op = of(self).op_;
        Kernel::infer(op, ShapeInference(of(self).api_, context, element_type(op.output.element)));
      });
    };
    GetStartVersion = [](const abi::CustomOp* self) { return of(self).op_.version; };
    GetEndVersion = GetStartVersion;
    if (Kernel::in_place(op)) {
      GetMayInplace = [](int** inputs, int** outputs) {
        static int zero[1] = {0};
        *inputs = *outputs = zero;
        return std::size_t{1};
      };
      ReleaseMayInplace = [](int*, int*) {};
    }
  }

 private:
  struct Instance {
    const Api& api;
    Kernel kernel;
  };
  static const CustomOp& of(const abi::CustomOp* self) { return *static_cast<const CustomOp*>(self); }

  const tables::Operator& op_;
  const Api& api_;
  const Registration& registration_;
};

}  // namespace dyndeploy::ort
