// JSON as it was written: numbers keep their digits, so that a text can be written again to the byte.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace dyndeploy {
namespace runtime {

struct Json {
  enum class Kind { kNull, kFalse, kTrue, kNumber, kText, kList, kObject };

  Kind kind = Kind::kNull;
  std::string text;               // of a text, or the digits of a number
  std::vector<std::string> keys;  // of an object, beside `items`; each once, the last of equals wins
  std::vector<Json> items;

  // What stands under a key of an object; null where it is missing.
  const Json* find(const std::string& key) const;
};

// Throws std::runtime_error, with the place in the text, on what is no JSON or nested deeper than 64 levels.
Json parse_json(const std::string& text);

// As Python writes it with sorted keys, without blanks and with everything but ASCII escaped. Leaves a key of
// the outermost object out.
std::string canonical_json(const Json& value, const std::string& without);

// The same with the blanks that Python's json.dumps writes by itself.
std::string spaced_json(const Json& value);

// Values to put together.
Json json_null();
Json json_text(const std::string& text);
Json json_number(const std::string& digits);
Json json_list(std::vector<Json> items);
Json json_object(std::vector<std::pair<std::string, Json>> entries);

// A text in quotes, a number that reads back as the same double ("null" if it is not finite).
std::string quoted(const std::string& text);
std::string number(double value);

// The value of a number's digits, whatever the locale.
double to_double(const std::string& digits);

}  // namespace runtime
}  // namespace dyndeploy
