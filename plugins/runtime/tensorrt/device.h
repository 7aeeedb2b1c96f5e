// What the parts of the module share: an opened TensorRT, its log, and errors.
#pragma once

#include <deque>
#include <memory>
#include <mutex>
#include <string>

#include "api.h"
#include "driver.h"
#include "dyndeploy.h"
#include "error.h"
#include "module.h"

namespace dyndeploy {
namespace runtime {

// Hands TensorRT's warnings and errors on, and keeps the last ones for messages.
class Logger : public nvinfer1::ILogger {
 public:
  void tell(void (*say)(void*, const char*), void* user) { say_ = say, user_ = user; }
  void log(Severity severity, const char* text) noexcept override;
  void forget();
  // "; " between them, in one line; "it gives no reason" without any.
  std::string errors() const;

 private:
  mutable std::mutex mutex_;
  std::deque<std::string> errors_;
  void (*say_)(void*, const char*) = nullptr;
  void* user_ = nullptr;
};

// Text in one line, without a point at its end.
std::string one_line(std::string text);

// Functions of TensorRT's libraries: the only ones that are not virtual.
struct Entries {
  void* (*runtime)(void* logger, int version);
  void* (*builder)(void* logger, int version);
  void* (*parser)(void* network, void* logger, int version);  // null without the library of the parser
  nvinfer1::IPluginRegistry* (*registry)();
  int version;  // to ask for objects with
};

}  // namespace runtime
}  // namespace dyndeploy

struct dyndeploy_trt {
  dyndeploy::runtime::Logger logger;
  dyndeploy::runtime::Entries entries{};
  dyndeploy_trt_info info{};
  std::string parser_missing;  // why there is no parser
  dyndeploy::runtime::Driver driver{};
  CUdevice device = 0;
  CUcontext context = nullptr;
  CUstream copies = nullptr;
  std::unique_ptr<nvinfer1::IRuntime> runtime;

  ~dyndeploy_trt();
  // Makes the device the calling thread's. Throws Error(DYNDEPLOY_BACKEND) where there is none.
  void use() const;
  // Throws Error(DYNDEPLOY_RUN) unless a call of the driver went well.
  void check(CUresult result, const char* doing) const;
};

namespace dyndeploy {
namespace runtime {

struct Built {
  std::string engine, timings;
};

// Throws Error(DYNDEPLOY_BACKEND).
Built build_engine(dyndeploy_trt& trt, const void* onnx, std::size_t size, const dyndeploy_trt_plan& plan,
                   const void* timings, std::size_t timings_size, void (*progress)(void*, const char*),
                   void* user);

}  // namespace runtime
}  // namespace dyndeploy
