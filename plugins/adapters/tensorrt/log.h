#pragma once

#include <string>

#include "api.h"

namespace dyndeploy {
namespace tensorrt {

void set_logger_finder(nvinfer1::ILoggerFinder* finder);

// "dyndeploy: <operator>: <message>": to the logger of the engine that calls, else to that of
// TensorRT, else to stderr.
void log_info(const char* operator_name, const std::string& message);
void log_warning(const char* operator_name, const std::string& message);
void log_error(const char* operator_name, const std::string& message);

}  // namespace tensorrt
}  // namespace dyndeploy
