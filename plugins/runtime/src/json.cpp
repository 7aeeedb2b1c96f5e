#include "json.h"

#include <rapidjson/error/en.h>
#include <rapidjson/reader.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <locale>
#include <map>
#include <sstream>
#include <stdexcept>

namespace dyndeploy {
namespace runtime {
namespace {

constexpr std::size_t kDeepest = 64;

// Receives the parser's events and builds the value.
class Builder : public rapidjson::BaseReaderHandler<rapidjson::UTF8<>, Builder> {
 public:
  bool Null() { return add(Json::Kind::kNull, std::string()); }
  bool Bool(bool value) { return add(value ? Json::Kind::kTrue : Json::Kind::kFalse, std::string()); }
  bool RawNumber(const char* text, rapidjson::SizeType size, bool) {
    return add(Json::Kind::kNumber, std::string(text, size));
  }
  bool String(const char* text, rapidjson::SizeType size, bool) {
    return add(Json::Kind::kText, std::string(text, size));
  }
  bool Key(const char* text, rapidjson::SizeType size, bool) {
    Level& level = open_.back();
    const std::string key(text, size);
    const auto known = level.places.emplace(key, level.value.items.size());
    level.next = known.first->second;
    if (known.second) {
      level.value.keys.push_back(key);
      level.value.items.emplace_back();
    }
    return true;
  }
  bool StartObject() { return start(Json::Kind::kObject); }
  bool StartArray() { return start(Json::Kind::kList); }
  bool EndObject(rapidjson::SizeType) { return end(); }
  bool EndArray(rapidjson::SizeType) { return end(); }

  Json take() { return std::move(root_); }

 private:
  struct Level {
    Json value;
    std::map<std::string, std::size_t> places;
    std::size_t next;
  };

  bool add(Json::Kind kind, std::string text) {
    Json value;
    value.kind = kind;
    value.text = std::move(text);
    return put(std::move(value));
  }
  bool put(Json value) {
    if (open_.empty()) {
      root_ = std::move(value);
    } else if (open_.back().value.kind == Json::Kind::kObject) {
      open_.back().value.items[open_.back().next] = std::move(value);
    } else {
      open_.back().value.items.push_back(std::move(value));
    }
    return true;
  }
  bool start(Json::Kind kind) {
    if (open_.size() == kDeepest) return false;
    open_.emplace_back();
    open_.back().value.kind = kind;
    return true;
  }
  bool end() {
    Json value = std::move(open_.back().value);
    open_.pop_back();
    return put(std::move(value));
  }

  Json root_;
  std::vector<Level> open_;
};

void append_escaped(std::string& out, unsigned value) {
  char text[12];
  std::snprintf(text, sizeof text, "\\u%04x", value);
  out += text;
}

// The code point at text[i], which moves behind it; the parser has checked that it is UTF-8.
unsigned code_point(const std::string& text, std::size_t& i) {
  const unsigned char lead = static_cast<unsigned char>(text[i++]);
  if (lead < 0x80) return lead;
  const int more = lead >= 0xf0 ? 3 : lead >= 0xe0 ? 2 : 1;
  unsigned point = lead & (0x3f >> more);
  for (int k = 0; k < more && i < text.size(); ++k)
    point = point << 6 | (static_cast<unsigned char>(text[i++]) & 0x3f);
  return point;
}

void append_text(std::string& out, const std::string& text) {
  static const char kPlain[] = "\"\\\n\r\t\b\f";
  static const char kShort[] = "\"\\nrtbf";
  out += '"';
  for (std::size_t i = 0; i < text.size();) {
    const unsigned point = code_point(text, i);
    const char* special = point && point < 0x80 ? std::strchr(kPlain, static_cast<int>(point)) : nullptr;
    if (special) {
      out += '\\';
      out += kShort[special - kPlain];
    } else if (point >= 0x20 && point < 0x7f) {
      out += static_cast<char>(point);
    } else if (point < 0x10000) {
      append_escaped(out, point);
    } else {
      append_escaped(out, 0xd800 + ((point - 0x10000) >> 10));
      append_escaped(out, 0xdc00 + ((point - 0x10000) & 0x3ff));
    }
  }
  out += '"';
}

void append(std::string& out, const Json& value, const std::string& without, const char* blank) {
  switch (value.kind) {
    case Json::Kind::kNull:
      out += "null";
      return;
    case Json::Kind::kFalse:
      out += "false";
      return;
    case Json::Kind::kTrue:
      out += "true";
      return;
    case Json::Kind::kNumber:
      out += value.text;
      return;
    case Json::Kind::kText:
      append_text(out, value.text);
      return;
    case Json::Kind::kList:
      out += '[';
      for (std::size_t i = 0; i < value.items.size(); ++i) {
        if (i) (out += ',') += blank;
        append(out, value.items[i], std::string(), blank);
      }
      out += ']';
      return;
    case Json::Kind::kObject:
      break;
  }
  // UTF-8 sorts as code points do.
  std::vector<std::size_t> order;
  for (std::size_t i = 0; i < value.keys.size(); ++i)
    if (without.empty() || value.keys[i] != without) order.push_back(i);
  std::sort(order.begin(), order.end(),
            [&](std::size_t a, std::size_t b) { return value.keys[a] < value.keys[b]; });
  out += '{';
  for (std::size_t i = 0; i < order.size(); ++i) {
    if (i) (out += ',') += blank;
    append_text(out, value.keys[order[i]]);
    (out += ':') += blank;
    append(out, value.items[order[i]], std::string(), blank);
  }
  out += '}';
}

}  // namespace

const Json* Json::find(const std::string& key) const {
  const auto found = std::find(keys.begin(), keys.end(), key);
  return found == keys.end() ? nullptr : &items[static_cast<std::size_t>(found - keys.begin())];
}

Json parse_json(const std::string& text) {
  Builder builder;
  rapidjson::Reader reader;
  rapidjson::MemoryStream bytes(text.data(), text.size());
  rapidjson::EncodedInputStream<rapidjson::UTF8<>, rapidjson::MemoryStream> stream(bytes);
  const rapidjson::ParseResult result =
      reader.Parse<rapidjson::kParseIterativeFlag | rapidjson::kParseNumbersAsStringsFlag |
                   rapidjson::kParseValidateEncodingFlag>(stream, builder);
  if (result.IsError()) {
    const bool deep = result.Code() == rapidjson::kParseErrorTermination;
    throw std::runtime_error((deep ? "it is nested too deeply" : rapidjson::GetParseError_En(result.Code())) +
                             std::string(" (byte ") + std::to_string(result.Offset()) + ")");
  }
  return builder.take();
}

std::string canonical_json(const Json& value, const std::string& without) {
  std::string out;
  append(out, value, without, "");
  return out;
}

std::string spaced_json(const Json& value) {
  std::string out;
  append(out, value, std::string(), " ");
  return out;
}

Json json_null() { return Json(); }

Json json_text(const std::string& text) {
  Json value;
  value.kind = Json::Kind::kText;
  value.text = text;
  return value;
}

Json json_number(const std::string& digits) {
  Json value;
  value.kind = Json::Kind::kNumber;
  value.text = digits;
  return value;
}

Json json_list(std::vector<Json> items) {
  Json value;
  value.kind = Json::Kind::kList;
  value.items = std::move(items);
  return value;
}

Json json_object(std::vector<std::pair<std::string, Json>> entries) {
  Json value;
  value.kind = Json::Kind::kObject;
  for (auto& entry : entries) {
    value.keys.push_back(std::move(entry.first));
    value.items.push_back(std::move(entry.second));
  }
  return value;
}

std::string quoted(const std::string& text) {
  std::string out;
  append_text(out, text);
  return out;
}

double to_double(const std::string& digits) {
  std::istringstream stream(digits);
  stream.imbue(std::locale::classic());
  double value = 0;
  stream >> value;
  // Too large for a double; too small becomes 0.
  if (stream.fail() && value != 0) return std::numeric_limits<double>::infinity();
  return value;
}

std::string number(double value) {
  if (!std::isfinite(value)) return "null";
  for (int precision = 1; precision <= 17; ++precision) {
    std::ostringstream stream;
    stream.imbue(std::locale::classic());
    stream.precision(precision);
    stream << value;
    if (to_double(stream.str()) == value) {
      // As Python writes it, so that it reads back as a float.
      const std::string text = stream.str();
      return text.find_first_of(".e") == std::string::npos ? text + ".0" : text;
    }
  }
  return "null";
}

}  // namespace runtime
}  // namespace dyndeploy
