// Why something cannot be done: a code of dyndeploy.h and one line for people.
#pragma once

#include <stdexcept>
#include <string>

#include "dyndeploy.h"

namespace dyndeploy {
namespace runtime {

class Error : public std::runtime_error {
 public:
  Error(int code, const std::string& message) : std::runtime_error(message), code_(code) {}
  int code() const { return code_; }

 private:
  int code_;
};

[[noreturn]] inline void fail(int code, const std::string& message) { throw Error(code, message); }

}  // namespace runtime
}  // namespace dyndeploy
