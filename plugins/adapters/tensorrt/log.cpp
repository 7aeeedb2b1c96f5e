#include "log.h"

#include <atomic>
#include <cstdio>

namespace dyndeploy {
namespace tensorrt {
namespace {

std::atomic<nvinfer1::ILoggerFinder*> logger_finder{nullptr};

nvinfer1::ILogger* find_logger() {
#if DYNDEPLOY_TENSORRT_HAS_LOGGER_FINDER
  if (nvinfer1::ILoggerFinder* finder = logger_finder.load()) {
    if (nvinfer1::ILogger* logger = finder->findLogger()) return logger;
  }
#endif
  return ::getLogger();
}

void write(nvinfer1::ILogger::Severity severity, const char* operator_name, const std::string& message) {
  const std::string text = std::string("dyndeploy: ") + operator_name + ": " + message;
  if (nvinfer1::ILogger* logger = find_logger()) {
    logger->log(severity, text.c_str());
  } else {
    std::fprintf(stderr, "%s\n", text.c_str());
  }
}

}  // namespace

void set_logger_finder(nvinfer1::ILoggerFinder* finder) { logger_finder.store(finder); }

void log_error(const char* operator_name, const std::string& message) {
  write(nvinfer1::ILogger::Severity::kERROR, operator_name, message);
}

void log_info(const char* operator_name, const std::string& message) {
  write(nvinfer1::ILogger::Severity::kINFO, operator_name, message);
}

void log_warning(const char* operator_name, const std::string& message) {
  write(nvinfer1::ILogger::Severity::kWARNING, operator_name, message);
}

}  // namespace tensorrt
}  // namespace dyndeploy
