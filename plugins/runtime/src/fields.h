// Reading JSON that somebody may have edited: every complaint names the field and what was wanted.
#pragma once

#include <string>
#include <vector>

#include "error.h"
#include "json.h"

namespace dyndeploy {
namespace runtime {

class Field {
 public:
  // `document` is the file's name in complaints; it lives as long as the program.
  Field(const Json* value, std::string place, const char* document = "bundle.json")
      : value_(value), place_(std::move(place)), document_(document) {}

  const Json& value() const { return *value_; }
  const std::string& place() const { return place_; }

  [[noreturn]] void complain(const std::string& what) const;
  void require(bool condition, const std::string& wanted) const;

  // A field of an object; it must be there. `find` gives null for what is missing.
  Field operator[](const std::string& key) const;
  Field find(const std::string& key) const;
  bool is_null() const { return value_->kind == Json::Kind::kNull; }

  std::string label() const;  // a text, which may be empty
  std::string text() const;
  bool boolean() const;
  std::int64_t count(std::int64_t least = 1) const;
  double finite() const;
  std::string sha256() const;
  std::vector<Field> list(std::size_t at_least = 0) const;
  std::vector<Field> list_of(std::size_t length) const;
  std::vector<Field> object() const;  // values; their keys are value().keys

 private:
  const Json* value_;
  std::string place_;
  const char* document_;
};

}  // namespace runtime
}  // namespace dyndeploy
