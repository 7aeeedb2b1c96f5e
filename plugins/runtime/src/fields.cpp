#include "fields.h"

#include <algorithm>
#include <cmath>

namespace dyndeploy {
namespace runtime {
namespace {

const Json kNull;
constexpr std::size_t kShown = 60;
// A count has at most so many digits: 2^53 has 16.
constexpr std::size_t kDigits = 15;

std::string in_place(const std::string& place, const std::string& key) {
  return place.empty() ? key : place + "." + key;
}

}  // namespace

void Field::complain(const std::string& what) const {
  fail(DYNDEPLOY_BUNDLE, std::string(document_) + " is malformed: " + what + ". Export the bundle again.");
}

void Field::require(bool condition, const std::string& wanted) const {
  if (condition) return;
  std::string shown = canonical_json(*value_, std::string());
  if (shown.size() > kShown) shown = shown.substr(0, kShown - 3) + "...";
  complain((place_.empty() ? "it" : place_) + " must be " + wanted + ", not " + shown);
}

Field Field::operator[](const std::string& key) const {
  require(value_->kind == Json::Kind::kObject, "an object");
  const Json* found = value_->find(key);
  if (!found) complain(in_place(place_, key) + " is missing");
  return Field(found, in_place(place_, key), document_);
}

Field Field::find(const std::string& key) const {
  require(value_->kind == Json::Kind::kObject, "an object");
  const Json* found = value_->find(key);
  return Field(found ? found : &kNull, in_place(place_, key), document_);
}

std::string Field::label() const {
  require(value_->kind == Json::Kind::kText, "text");
  return value_->text;
}

std::string Field::text() const {
  require(value_->kind == Json::Kind::kText && !value_->text.empty(), "a non-empty text");
  // The texts of C end there.
  require(value_->text.find('\0') == std::string::npos, "a text without the character NUL");
  return value_->text;
}

bool Field::boolean() const {
  require(value_->kind == Json::Kind::kTrue || value_->kind == Json::Kind::kFalse, "true or false");
  return value_->kind == Json::Kind::kTrue;
}

std::int64_t Field::count(std::int64_t least) const {
  const std::string wanted = "a whole number of at least " + std::to_string(least);
  const std::string& digits = value_->text;
  const bool whole = value_->kind == Json::Kind::kNumber && !digits.empty() &&
                     std::all_of(digits.begin(), digits.end(), [](char c) { return c >= '0' && c <= '9'; });
  require(whole, wanted);
  require(digits.size() <= kDigits, wanted + " and fewer than 16 digits");
  const std::int64_t found = std::stoll(digits);
  require(found >= least, wanted);
  return found;
}

double Field::finite() const {
  const bool number = value_->kind == Json::Kind::kNumber;
  const double found = number ? to_double(value_->text) : 0;
  require(number && std::isfinite(found), "a finite number");
  return found;
}

std::string Field::sha256() const {
  const std::string& text = value_->text;
  const bool hex = value_->kind == Json::Kind::kText && text.size() == 64 &&
                   text.find_first_not_of("0123456789abcdef") == std::string::npos;
  require(hex, "a SHA-256 in hex");
  return text;
}

std::vector<Field> Field::list(std::size_t at_least) const {
  require(value_->kind == Json::Kind::kList, "a list");
  require(value_->items.size() >= at_least, "a list that is not empty");
  std::vector<Field> found;
  for (std::size_t i = 0; i < value_->items.size(); ++i)
    found.emplace_back(&value_->items[i], place_ + "[" + std::to_string(i) + "]", document_);
  return found;
}

std::vector<Field> Field::list_of(std::size_t length) const {
  std::vector<Field> found = list();
  require(found.size() == length, "a list of " + std::to_string(length));
  return found;
}

std::vector<Field> Field::object() const {
  require(value_->kind == Json::Kind::kObject, "an object");
  std::vector<Field> found;
  for (std::size_t i = 0; i < value_->items.size(); ++i)
    found.emplace_back(&value_->items[i], place_ + "[" + quoted(value_->keys[i]) + "]", document_);
  return found;
}

}  // namespace runtime
}  // namespace dyndeploy
