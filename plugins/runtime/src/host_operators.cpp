#include "host_operators.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <map>
#include <numeric>
#include <type_traits>

#include "host_boxes.h"

namespace dyndeploy {
namespace runtime {
namespace {

using Inputs = std::vector<Value>;
using Results = std::vector<Value>;

void require(bool condition, const std::string& what) {
  if (!condition) throw ProgramError(what);
}

const Value& given(const Inputs& inputs, std::size_t index) {
  require(index < inputs.size() && inputs[index].type, "input " + std::to_string(index) + " is left out");
  return inputs[index];
}

bool has(const Inputs& inputs, std::size_t index) { return index < inputs.size() && inputs[index].type; }

std::size_t axis_of(std::int64_t axis, std::size_t rank) {
  const std::int64_t most = static_cast<std::int64_t>(rank);
  require(axis >= -most && axis < most, "there is no axis " + std::to_string(axis));
  return static_cast<std::size_t>(axis < 0 ? axis + most : axis);
}

std::int64_t place_of(std::int64_t place, std::int64_t size) {
  require(place >= -size && place < size, "there is no place " + std::to_string(place));
  return place < 0 ? place + size : place;
}

// An array as (outer, axis, inner).
struct Split {
  std::int64_t outer = 1, size = 1, inner = 1;
};

Split split_at(const Shape& shape, std::size_t axis) {
  Split found;
  for (std::size_t i = 0; i < shape.size(); ++i)
    (i < axis ? found.outer : i == axis ? found.size : found.inner) *= shape[i];
  return found;
}

// ---------------------------------------------------------------- element by element

Shape broadcast(const Shape& one, const Shape& other) {
  Shape shape(std::max(one.size(), other.size()), 1);
  for (std::size_t i = 0; i < shape.size(); ++i) {
    const std::int64_t left = i < one.size() ? one[one.size() - 1 - i] : 1;
    const std::int64_t right = i < other.size() ? other[other.size() - 1 - i] : 1;
    require(left == right || left == 1 || right == 1, "shapes do not fit each other");
    shape[shape.size() - 1 - i] = left == 1 ? right : left;
  }
  return shape;
}

// Elements from one place of an axis to the next, 0 where they are repeated.
Shape steps_of(const Shape& operand, const Shape& result) {
  Shape steps(result.size(), 0);
  std::int64_t step = 1;
  for (std::size_t i = 0; i < operand.size(); ++i) {
    const std::int64_t size = operand[operand.size() - 1 - i];
    if (size != 1) steps[result.size() - 1 - i] = step;
    step *= size;
  }
  return steps;
}

// each(place in the result, place in every operand), row by row.
template <std::size_t Count, class Each>
void each_element(const Shape& shape, const Value* const (&operands)[Count], Each each) {
  const std::int64_t total = static_cast<std::int64_t>(elements(shape));
  const std::int64_t length = shape.empty() ? 1 : shape.back();
  Shape steps[Count];
  std::int64_t starts[Count] = {}, last[Count];
  for (std::size_t k = 0; k < Count; ++k) {
    steps[k] = steps_of(operands[k]->shape, shape);
    last[k] = shape.empty() ? 0 : steps[k].back();
  }
  Shape index(shape.size(), 0);
  for (std::int64_t row = 0; row < total; row += length) {
    std::int64_t places[Count];
    std::copy(starts, starts + Count, places);
    for (std::int64_t i = 0; i < length; ++i) {
      each(row + i, places);
      for (std::size_t k = 0; k < Count; ++k) places[k] += last[k];
    }
    for (std::size_t axis = shape.size(); axis-- > 1;) {
      const std::size_t at = axis - 1;
      for (std::size_t k = 0; k < Count; ++k) starts[k] += steps[k][at];
      if (++index[at] < shape[at]) break;
      for (std::size_t k = 0; k < Count; ++k) starts[k] -= shape[at] * steps[k][at];
      index[at] = 0;
    }
  }
}

template <class Result, class T, class Function>
Value zipped(const Value& one, const Value& other, Function function) {
  Value result = new_value(TypeOf<Result>::value, broadcast(one.shape, other.shape));
  Result* out = result.writable<Result>();
  const T *left = one.data<T>(), *right = other.data<T>();
  each_element(result.shape, {&one, &other}, [&](std::int64_t at, const std::int64_t* places) {
    out[at] = function(left[places[0]], right[places[1]]);
  });
  return result;
}

void require_alike(const Value& one, const Value& other) {
  require(one.type == other.type, std::string("it computes with ") + type_name(one.type) + " and " +
                                      type_name(other.type) + " at once");
}

// Numbers of one type, in which the result is.
template <class Function>
Value combined(const Value& one, const Value& other, Function function) {
  require_alike(one, other);
  Value result;
  with_number(one.type, [&](auto zero) {
    using T = decltype(zero);
    result = zipped<T, T>(one, other, function);
  });
  return result;
}

template <class T, class Function>
Value mapped(const Value& x, Function function) {
  Value result = new_value(x.type, x.shape);
  std::transform(x.data<T>(), x.data<T>() + x.count(), result.writable<T>(), function);
  return result;
}

// What stands in the table, by the function that is applied.
template <class Function>
Results arithmetic(const Attributes&, const Inputs& inputs) {
  return {combined(given(inputs, 0), given(inputs, 1), Function())};
}

template <class Function>
Results folded(const Attributes&, const Inputs& inputs) {
  Value result = given(inputs, 0);
  for (std::size_t i = 1; i < inputs.size(); ++i) result = combined(result, given(inputs, i), Function());
  return {result};
}

template <class Function>
Results compared(const Attributes&, const Inputs& inputs) {
  const Value &one = given(inputs, 0), &other = given(inputs, 1);
  require_alike(one, other);
  Value result;
  with_any(one.type, [&](auto zero) {
    using T = decltype(zero);
    result = zipped<std::uint8_t, T>(one, other, Function());
  });
  return {result};
}

template <class Function>
Results logical(const Attributes&, const Inputs& inputs) {
  const Value &one = given(inputs, 0), &other = given(inputs, 1);
  require(one.type == DYNDEPLOY_BOOL && other.type == DYNDEPLOY_BOOL, "it joins what is no bool");
  return {zipped<std::uint8_t, std::uint8_t>(one, other, Function())};
}

template <class Function>
Results of_floats(const Attributes&, const Inputs& inputs) {
  const Value& x = given(inputs, 0);
  Value result;
  with_float(x.type, [&](auto zero) { result = mapped<decltype(zero)>(x, Function()); });
  return {result};
}

template <class Function>
Results of_numbers(const Attributes&, const Inputs& inputs) {
  const Value& x = given(inputs, 0);
  Value result;
  with_number(x.type, [&](auto zero) { result = mapped<decltype(zero)>(x, Function()); });
  return {result};
}

// Whole numbers wrap around, as NumPy's do.
template <class T, class Function, typename std::enable_if<std::is_integral<T>::value, int>::type = 0>
T wrapped(T one, T other, Function function) {
  using U = typename std::make_unsigned<T>::type;
  return static_cast<T>(function(static_cast<U>(one), static_cast<U>(other)));
}
template <class T, class Function, typename std::enable_if<!std::is_integral<T>::value, int>::type = 0>
T wrapped(T one, T other, Function function) {
  return function(one, other);
}

struct Plus {
  template <class T>
  T operator()(T one, T other) const {
    return wrapped(one, other, [](auto a, auto b) { return a + b; });
  }
};
struct Minus {
  template <class T>
  T operator()(T one, T other) const {
    return wrapped(one, other, [](auto a, auto b) { return a - b; });
  }
};
struct Times {
  template <class T>
  T operator()(T one, T other) const {
    return wrapped(one, other, [](auto a, auto b) { return a * b; });
  }
};
struct Over {
  float operator()(float one, float other) const { return one / other; }
  double operator()(double one, double other) const { return one / other; }
  template <class T>
  T operator()(T one, T other) const {
    require(other != 0, "it divides by zero");
    // The one quotient that does not fit.
    return other == -1 ? Minus()(T{0}, one) : static_cast<T>(one / other);
  }
};
// Not a number wins, as in NumPy.
struct Larger {
  template <class T>
  T operator()(T one, T other) const {
    return one > other || one != one ? one : other;
  }
};
struct Smaller {
  template <class T>
  T operator()(T one, T other) const {
    return one < other || one != one ? one : other;
  }
};
struct Negative {
  float operator()(float x) const { return -x; }
  double operator()(double x) const { return -x; }
  template <class T>
  T operator()(T x) const {
    return Minus()(T{0}, x);
  }
};
struct Magnitude {
  float operator()(float x) const { return std::fabs(x); }
  double operator()(double x) const { return std::fabs(x); }
  template <class T>
  T operator()(T x) const {
    return x < 0 ? Minus()(T{0}, x) : x;
  }
};
struct Exponential {
  template <class T>
  T operator()(T x) const {
    return std::exp(x);
  }
};
struct Logarithm {
  template <class T>
  T operator()(T x) const {
    return std::log(x);
  }
};
struct Root {
  template <class T>
  T operator()(T x) const {
    return std::sqrt(x);
  }
};
struct Up {
  template <class T>
  T operator()(T x) const {
    return std::ceil(x);
  }
};
struct Down {
  template <class T>
  T operator()(T x) const {
    return std::floor(x);
  }
};
struct Logistic {
  template <class T>
  T operator()(T x) const {
    return T{1} / (T{1} + std::exp(-x));
  }
};
struct Both {
  std::uint8_t operator()(std::uint8_t one, std::uint8_t other) const { return one && other; }
};
struct Either {
  std::uint8_t operator()(std::uint8_t one, std::uint8_t other) const { return one || other; }
};

template <class T>
T remainder_of(T one, T other, bool as_c, std::true_type /*whole*/) {
  require(other != 0, "it divides by zero");
  if (other == -1) return 0;
  const T left = static_cast<T>(one % other);
  return !as_c && left != 0 && (left < 0) != (other < 0) ? static_cast<T>(left + other) : left;
}
template <class T>
T remainder_of(T one, T other, bool as_c, std::false_type /*whole*/) {
  const T left = std::fmod(one, other);
  return !as_c && left != 0 && (left < 0) != (other < 0) ? left + other : left;
}

Results modulo(const Attributes& attributes, const Inputs& inputs) {
  const bool as_c = attributes.whole("fmod", 0) != 0;
  return {combined(given(inputs, 0), given(inputs, 1), [as_c](auto one, auto other) {
    return remainder_of(one, other, as_c, std::is_integral<decltype(one)>());
  })};
}

Results logical_not(const Attributes&, const Inputs& inputs) {
  const Value& x = given(inputs, 0);
  require(x.type == DYNDEPLOY_BOOL, "it negates what is no bool");
  return {mapped<std::uint8_t>(x, [](std::uint8_t bit) { return static_cast<std::uint8_t>(!bit); })};
}

Results identity(const Attributes&, const Inputs& inputs) { return {given(inputs, 0)}; }

Results clip(const Attributes&, const Inputs& inputs) {
  Value x = given(inputs, 0);
  if (has(inputs, 1)) x = combined(x, inputs[1], Larger());
  if (has(inputs, 2)) x = combined(x, inputs[2], Smaller());
  return {x};
}

Results power(const Attributes&, const Inputs& inputs) {
  const Value& base = given(inputs, 0);
  Value exponent = given(inputs, 1), result;
  with_float(base.type, [&](auto zero) {
    using T = decltype(zero);
    if (exponent.type != base.type) {
      Value same = new_value(base.type, exponent.shape);
      with_number(exponent.type, [&](auto other) {
        using S = decltype(other);
        std::transform(exponent.data<S>(), exponent.data<S>() + exponent.count(), same.writable<T>(),
                       [](S value) { return static_cast<T>(value); });
      });
      exponent = same;
    }
    result = zipped<T, T>(base, exponent, [](T a, T b) { return static_cast<T>(std::pow(a, b)); });
  });
  return {result};
}

template <class To, class From>
To converted(From value, std::true_type /*from a float to a whole number*/) {
  // What does not fit is the least number, as processors of the kind x86 have it.
  const double whole = std::trunc(static_cast<double>(value));
  const double most = std::ldexp(1.0, std::numeric_limits<To>::digits);
  return whole >= -most && whole < most ? static_cast<To>(whole) : std::numeric_limits<To>::min();
}
template <class To, class From>
To converted(From value, std::false_type) {
  return static_cast<To>(value);
}

Results cast(const Attributes& attributes, const Inputs& inputs) {
  const Value& x = given(inputs, 0);
  const std::int64_t to = attributes.whole("to");
  require(to >= 0 && to < 100, "it casts to no type");
  Value result = new_value(static_cast<int>(to), x.shape);
  const std::size_t count = x.count();
  with_any(x.type, [&](auto from) {
    using From = decltype(from);
    const From* values = x.data<From>();
    with_any(result.type, [&](auto zero) {
      using To = decltype(zero);
      To* out = result.writable<To>();
      using Narrows =
          std::integral_constant<bool, std::is_floating_point<From>::value && std::is_integral<To>::value>;
      for (std::size_t i = 0; i < count; ++i)
        out[i] = std::is_same<To, std::uint8_t>::value ? static_cast<To>(values[i] != From{0})
                                                       : converted<To>(values[i], Narrows());
    });
  });
  return {result};
}

Results where(const Attributes&, const Inputs& inputs) {
  const Value &condition = given(inputs, 0), &one = given(inputs, 1), &other = given(inputs, 2);
  require(condition.type == DYNDEPLOY_BOOL, "it chooses by what is no bool");
  require_alike(one, other);
  Value result = new_value(one.type, broadcast(condition.shape, broadcast(one.shape, other.shape)));
  with_any(one.type, [&](auto zero) {
    using T = decltype(zero);
    T* out = result.writable<T>();
    each_element(result.shape, {&condition, &one, &other}, [&](std::int64_t at, const std::int64_t* places) {
      out[at] =
          condition.data<std::uint8_t>()[places[0]] ? one.data<T>()[places[1]] : other.data<T>()[places[2]];
    });
  });
  return {result};
}

Results expand(const Attributes&, const Inputs& inputs) {
  const Value& x = given(inputs, 0);
  Value result = new_value(x.type, broadcast(x.shape, whole_numbers(given(inputs, 1))));
  const std::size_t bytes = element_bytes(x.type);
  each_element(result.shape, {&x}, [&](std::int64_t at, const std::int64_t* places) {
    std::memcpy(result.memory.get() + static_cast<std::size_t>(at) * bytes,
                x.memory.get() + static_cast<std::size_t>(places[0]) * bytes, bytes);
  });
  return {result};
}

// ---------------------------------------------------------------- shapes

Results reshape(const Attributes& attributes, const Inputs& inputs) {
  const Value& x = given(inputs, 0);
  Shape shape = whole_numbers(given(inputs, 1));
  const bool keeps = !attributes.whole("allowzero", 0);
  std::int64_t known = 1, open = -1;
  for (std::size_t i = 0; i < shape.size(); ++i) {
    if (shape[i] == 0 && keeps) {
      require(i < x.rank(), "it keeps an axis that is not there");
      shape[i] = x.shape[i];
    }
    require(shape[i] >= -1 && (shape[i] >= 0 || open < 0), "it is reshaped to no shape");
    if (shape[i] < 0) open = static_cast<std::int64_t>(i);
  }
  for (const std::int64_t size : shape)
    if (size >= 0) known = static_cast<std::int64_t>(elements({known, size}));
  if (open >= 0) {
    require(known > 0 && static_cast<std::int64_t>(x.count()) % known == 0, "it is reshaped to no shape");
    shape[static_cast<std::size_t>(open)] = static_cast<std::int64_t>(x.count()) / known;
  }
  require(elements(shape) == x.count(), "it is reshaped to another number of elements");
  return {with_shape(x, shape)};
}

Results unsqueeze(const Attributes&, const Inputs& inputs) {
  const Value& x = given(inputs, 0);
  std::vector<std::int64_t> axes = whole_numbers(given(inputs, 1));
  const std::size_t rank = x.rank() + axes.size();
  for (std::int64_t& axis : axes) axis = static_cast<std::int64_t>(axis_of(axis, rank));
  std::sort(axes.begin(), axes.end());
  Shape shape = x.shape;
  for (const std::int64_t axis : axes) {
    require(axis <= static_cast<std::int64_t>(shape.size()), "it gets an axis twice");
    shape.insert(shape.begin() + axis, 1);
  }
  return {with_shape(x, shape)};
}

Results squeeze(const Attributes&, const Inputs& inputs) {
  const Value& x = given(inputs, 0);
  std::vector<char> goes(x.rank(), 0);
  if (has(inputs, 1)) {
    for (const std::int64_t axis : whole_numbers(inputs[1])) goes[axis_of(axis, x.rank())] = 1;
  } else {
    for (std::size_t i = 0; i < x.rank(); ++i) goes[i] = x.shape[i] == 1;
  }
  Shape shape;
  for (std::size_t i = 0; i < x.rank(); ++i) {
    require(!goes[i] || x.shape[i] == 1, "it loses an axis that is not 1");
    if (!goes[i]) shape.push_back(x.shape[i]);
  }
  return {with_shape(x, shape)};
}

// A copy of the elements from the place `first` on; `steps` are from one to the next along each axis.
Value strided(const Value& x, const Shape& shape, std::int64_t first, const Shape& steps) {
  Value result = new_value(x.type, shape);
  const std::size_t bytes = element_bytes(x.type);
  const std::int64_t total = static_cast<std::int64_t>(elements(shape));
  const std::int64_t length = shape.empty() ? 1 : shape.back(), step = shape.empty() ? 0 : steps.back();
  Shape index(shape.size(), 0);
  char* out = result.memory.get();
  for (std::int64_t row = 0; row < total; row += length) {
    const char* from = x.memory.get() + first * static_cast<std::int64_t>(bytes);
    if (step == 1) {
      std::memcpy(out, from, static_cast<std::size_t>(length) * bytes);
      out += static_cast<std::size_t>(length) * bytes;
    } else {
      for (std::int64_t i = 0; i < length; ++i, out += bytes)
        std::memcpy(out, from + i * step * static_cast<std::int64_t>(bytes), bytes);
    }
    for (std::size_t axis = shape.size(); axis-- > 1;) {
      const std::size_t at = axis - 1;
      first += steps[at];
      if (++index[at] < shape[at]) break;
      first -= shape[at] * steps[at];
      index[at] = 0;
    }
  }
  return result;
}

Shape steps_in(const Shape& shape) {
  Shape steps(shape.size(), 1);
  for (std::size_t i = shape.size(); i-- > 1;) steps[i - 1] = steps[i] * shape[i];
  return steps;
}

Results slice(const Attributes&, const Inputs& inputs) {
  const Value& x = given(inputs, 0);
  const std::vector<std::int64_t> starts = whole_numbers(given(inputs, 1)),
                                  ends = whole_numbers(given(inputs, 2));
  std::vector<std::int64_t> axes(starts.size()), by(starts.size(), 1);
  std::iota(axes.begin(), axes.end(), 0);
  if (has(inputs, 3)) axes = whole_numbers(inputs[3]);
  if (has(inputs, 4)) by = whole_numbers(inputs[4]);
  require(ends.size() == starts.size() && axes.size() == starts.size() && by.size() == starts.size(),
          "it is cut at places that do not belong together");
  Shape shape = x.shape, steps = steps_in(x.shape);
  std::int64_t first = 0;
  std::vector<char> cut(x.rank(), 0);
  for (std::size_t i = 0; i < starts.size(); ++i) {
    const std::size_t axis = axis_of(axes[i], x.rank());
    const std::int64_t size = x.shape[axis], step = by[i];
    require(step != 0 && step >= -size - 1 && step <= std::max<std::int64_t>(size, 1) && !cut[axis],
            "it is cut in steps that do not fit");
    cut[axis] = 1;
    const auto inside = [size](std::int64_t place, std::int64_t low, std::int64_t high) {
      if (place < 0) place = std::max<std::int64_t>(place, -size - 1) + size;
      return std::min(std::max(place, low), high);
    };
    const std::int64_t begin = step > 0 ? inside(starts[i], 0, size) : inside(starts[i], -1, size - 1);
    const std::int64_t end = step > 0 ? inside(ends[i], 0, size) : inside(ends[i], -1, size - 1);
    const std::int64_t span = step > 0 ? end - begin : begin - end, stride = step > 0 ? step : -step;
    shape[axis] = span > 0 ? (span + stride - 1) / stride : 0;
    if (shape[axis]) first += begin * steps[axis];
    steps[axis] *= step;
  }
  return {strided(x, shape, elements(shape) ? first : 0, steps)};
}

Results transpose(const Attributes& attributes, const Inputs& inputs) {
  const Value& x = given(inputs, 0);
  std::vector<std::int64_t> order = attributes.wholes("perm");
  if (order.empty())
    for (std::size_t i = x.rank(); i-- > 0;) order.push_back(static_cast<std::int64_t>(i));
  require(order.size() == x.rank(), "its axes are permuted in another number");
  const Shape all = steps_in(x.shape);
  Shape shape, steps;
  std::vector<char> seen(x.rank(), 0);
  for (const std::int64_t axis : order) {
    const std::size_t at = axis_of(axis, x.rank());
    require(!seen[at], "an axis is permuted twice");
    seen[at] = 1;
    shape.push_back(x.shape[at]);
    steps.push_back(all[at]);
  }
  return {strided(x, shape, 0, steps)};
}

Results concatenate(const Attributes& attributes, const Inputs& inputs) {
  const Value& first = given(inputs, 0);
  const std::size_t axis = axis_of(attributes.whole("axis"), first.rank());
  Shape shape = first.shape;
  shape[axis] = 0;
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    const Value& each = given(inputs, i);
    require_alike(first, each);
    Shape like = each.shape;
    require(like.size() == shape.size(), "it joins arrays of other shapes");
    shape[axis] += like[axis];
    like[axis] = first.shape[axis];
    require(like == first.shape, "it joins arrays of other shapes");
  }
  Value result = new_value(first.type, shape);
  const std::size_t bytes = element_bytes(first.type);
  const Split whole = split_at(shape, axis);
  char* out = result.memory.get();
  for (std::int64_t row = 0; row < whole.outer; ++row)
    for (const Value& each : inputs) {
      const Split own = split_at(each.shape, axis);
      const std::size_t length = static_cast<std::size_t>(own.size * own.inner) * bytes;
      if (length) std::memcpy(out, each.memory.get() + static_cast<std::size_t>(row) * length, length);
      out += length;
    }
  return {result};
}

// ---------------------------------------------------------------- places

Results gather(const Attributes& attributes, const Inputs& inputs) {
  const Value &x = given(inputs, 0), &places = given(inputs, 1);
  const std::size_t axis = axis_of(attributes.whole("axis", 0), x.rank());
  const std::vector<std::int64_t> chosen = whole_numbers(places);
  Shape shape(x.shape.begin(), x.shape.begin() + static_cast<std::ptrdiff_t>(axis));
  shape.insert(shape.end(), places.shape.begin(), places.shape.end());
  shape.insert(shape.end(), x.shape.begin() + static_cast<std::ptrdiff_t>(axis) + 1, x.shape.end());
  Value result = new_value(x.type, shape);
  const Split split = split_at(x.shape, axis);
  const std::size_t length = static_cast<std::size_t>(split.inner) * element_bytes(x.type);
  char* out = result.memory.get();
  for (std::int64_t row = 0; row < split.outer; ++row)
    for (const std::int64_t place : chosen) {
      const std::int64_t from = row * split.size + place_of(place, split.size);
      std::memcpy(out, x.memory.get() + static_cast<std::size_t>(from) * length, length);
      out += length;
    }
  return {result};
}

// places: of an axis, by position along the others. use(place in x, place in the other).
template <class Use>
void each_along(const Value& x, const Value& places, std::int64_t number, Use use) {
  const std::size_t axis = axis_of(number, x.rank());
  require(places.rank() == x.rank(), "its places are of another rank");
  for (std::size_t i = 0; i < x.rank(); ++i)
    require(i == axis || places.shape[i] <= x.shape[i], "its places lie outside");
  const std::vector<std::int64_t> chosen = whole_numbers(places);
  const Shape steps = steps_in(x.shape);
  Shape index(x.rank(), 0);
  for (std::size_t i = 0; i < chosen.size(); ++i) {
    std::int64_t at = 0;
    for (std::size_t k = 0; k < index.size(); ++k)
      at += steps[k] * (k == axis ? place_of(chosen[i], x.shape[axis]) : index[k]);
    use(static_cast<std::size_t>(at), i);
    for (std::size_t k = index.size(); k-- > 0;) {
      if (++index[k] < places.shape[k]) break;
      index[k] = 0;
    }
  }
}

Results gather_elements(const Attributes& attributes, const Inputs& inputs) {
  const Value &x = given(inputs, 0), &places = given(inputs, 1);
  Value result = new_value(x.type, places.shape);
  const std::size_t bytes = element_bytes(x.type);
  each_along(x, places, attributes.whole("axis", 0), [&](std::size_t from, std::size_t to) {
    std::memcpy(result.memory.get() + to * bytes, x.memory.get() + from * bytes, bytes);
  });
  return {result};
}

Results scatter_elements(const Attributes& attributes, const Inputs& inputs) {
  const Value &x = given(inputs, 0), &places = given(inputs, 1), &updates = given(inputs, 2);
  require(attributes.text("reduction", "none") == "none", "ScatterElements with a reduction has no rule");
  require_alike(x, updates);
  require(updates.shape == places.shape, "its updates are not as many as their places");
  const std::size_t bytes = element_bytes(x.type);
  Value result = new_value(x.type, x.shape);
  if (x.count()) std::memcpy(result.memory.get(), x.memory.get(), x.count() * bytes);
  each_along(x, places, attributes.whole("axis", 0), [&](std::size_t to, std::size_t from) {
    std::memcpy(result.memory.get() + to * bytes, updates.memory.get() + from * bytes, bytes);
  });
  return {result};
}

Results gather_nd(const Attributes& attributes, const Inputs& inputs) {
  const Value &x = given(inputs, 0), &places = given(inputs, 1);
  require(!attributes.whole("batch_dims", 0), "GatherND with batch_dims has no rule");
  require(places.rank() > 0 && places.shape.back() <= static_cast<std::int64_t>(x.rank()),
          "its places have too many axes");
  const std::size_t axes = static_cast<std::size_t>(places.shape.back());
  Shape shape(places.shape.begin(), places.shape.end() - 1);
  shape.insert(shape.end(), x.shape.begin() + static_cast<std::ptrdiff_t>(axes), x.shape.end());
  Value result = new_value(x.type, shape);
  const std::vector<std::int64_t> chosen = whole_numbers(places);
  const Shape steps = steps_in(x.shape);
  const std::size_t length = elements(x.shape, axes) * element_bytes(x.type), bytes = element_bytes(x.type);
  char* out = result.memory.get();
  for (std::size_t i = 0; axes && i < chosen.size(); i += axes, out += length) {
    std::int64_t at = 0;
    for (std::size_t k = 0; k < axes; ++k) at += steps[k] * place_of(chosen[i + k], x.shape[k]);
    std::memcpy(out, x.memory.get() + static_cast<std::size_t>(at) * bytes, length);
  }
  require(axes > 0, "its places have no axes");
  return {result};
}

// ---------------------------------------------------------------- rows

// Whether one comes before the other; not a number comes last.
template <class T>
bool is_better(T one, T other, bool largest) {
  if (other != other) return one == one;
  return largest ? one > other : one < other;
}

Results top_k(const Attributes& attributes, const Inputs& inputs) {
  const Value& x = given(inputs, 0);
  const std::vector<std::int64_t> wanted = whole_numbers(given(inputs, 1));
  require(!wanted.empty(), "it takes no number of the best");
  const std::size_t axis = axis_of(attributes.whole("axis", -1), x.rank());
  const bool largest = attributes.whole("largest", 1) != 0;
  const Split split = split_at(x.shape, axis);
  const std::int64_t count = wanted[0];
  require(count >= 0 && count <= split.size, "it takes more than there are");
  Shape shape = x.shape;
  shape[axis] = count;
  Value best = new_value(x.type, shape), places = new_value(DYNDEPLOY_INT64, shape);
  with_number(x.type, [&](auto zero) {
    using T = decltype(zero);
    const auto better = [largest](T one, T other) { return is_better(one, other, largest); };
    std::vector<T> row(static_cast<std::size_t>(split.size)), keys;
    std::vector<std::int64_t> chosen;
    for (std::int64_t outer = 0; outer < split.outer; ++outer)
      for (std::int64_t inner = 0; inner < split.inner && count; ++inner) {
        const T* from = x.data<T>() + outer * split.size * split.inner + inner;
        for (std::int64_t i = 0; i < split.size; ++i)
          row[static_cast<std::size_t>(i)] = from[i * split.inner];
        keys = row;
        const auto cut = keys.begin() + (count - 1);
        std::nth_element(keys.begin(), cut, keys.end(), better);
        const std::int64_t sure = std::count_if(keys.begin(), cut, [&](T key) { return better(key, *cut); });
        std::int64_t ties = count - sure;
        chosen.clear();
        for (std::int64_t i = 0; i < split.size; ++i) {
          const T key = row[static_cast<std::size_t>(i)];
          if (better(*cut, key)) continue;
          // Of equal ones those that come first.
          if (better(key, *cut) || ties-- > 0) chosen.push_back(i);
        }
        std::stable_sort(chosen.begin(), chosen.end(), [&](std::int64_t one, std::int64_t other) {
          return better(row[static_cast<std::size_t>(one)], row[static_cast<std::size_t>(other)]);
        });
        const std::int64_t to = outer * count * split.inner + inner;
        for (std::int64_t i = 0; i < count; ++i) {
          const std::int64_t place = chosen[static_cast<std::size_t>(i)];
          best.writable<T>()[to + i * split.inner] = row[static_cast<std::size_t>(place)];
          places.writable<std::int64_t>()[to + i * split.inner] = place;
        }
      }
  });
  return {best, places};
}

// As NumPy sums a row: in eight sums at once, and long ones in halves.
template <class T>
T pairwise_sum(const T* values, std::int64_t count) {
  if (count < 8) {
    T sum = 0;
    for (std::int64_t i = 0; i < count; ++i) sum = Plus()(sum, values[i]);
    return sum;
  }
  const Plus add;
  if (count > 128) {
    const std::int64_t half = count / 2 - count / 2 % 8;
    return add(pairwise_sum(values, half), pairwise_sum(values + half, count - half));
  }
  T sums[8];
  std::copy(values, values + 8, sums);
  std::int64_t i = 8;
  for (; i < count - count % 8; i += 8)
    for (int k = 0; k < 8; ++k) sums[k] = add(sums[k], values[i + k]);
  T sum = add(add(add(sums[0], sums[1]), add(sums[2], sums[3])),
              add(add(sums[4], sums[5]), add(sums[6], sums[7])));
  for (; i < count; ++i) sum = add(sum, values[i]);
  return sum;
}

enum class Reduction { kMax, kMin, kSum };

// Along one axis, which stays as 1.
Value reduced_along(const Value& x, std::size_t axis, Reduction how) {
  const Split split = split_at(x.shape, axis);
  require(split.size > 0 || how == Reduction::kSum, "it is reduced over nothing");
  Shape shape = x.shape;
  shape[axis] = 1;
  Value result = new_value(x.type, shape);
  with_number(x.type, [&](auto zero) {
    using T = decltype(zero);
    for (std::int64_t outer = 0; outer < split.outer; ++outer)
      for (std::int64_t inner = 0; inner < split.inner; ++inner) {
        const T* from = x.data<T>() + outer * split.size * split.inner + inner;
        T found = split.size ? from[0] : T{0};
        if (how == Reduction::kSum && split.inner == 1) {
          found = pairwise_sum(from, split.size);
        } else {
          for (std::int64_t i = 1; i < split.size; ++i) {
            const T next = from[i * split.inner];
            found = how == Reduction::kMax   ? Larger()(found, next)
                    : how == Reduction::kMin ? Smaller()(found, next)
                                             : Plus()(found, next);
          }
        }
        result.writable<T>()[outer * split.inner + inner] = found;
      }
  });
  return result;
}

template <Reduction how>
Results reduced(const Attributes& attributes, const Inputs& inputs) {
  Value x = given(inputs, 0);
  std::vector<std::int64_t> axes;
  if (has(inputs, 1)) axes = whole_numbers(inputs[1]);
  if (axes.empty()) {
    if (attributes.whole("noop_with_empty_axes", 0)) return {x};
    for (std::size_t i = 0; i < x.rank(); ++i) axes.push_back(static_cast<std::int64_t>(i));
  }
  std::vector<char> goes(x.rank(), 0);
  for (const std::int64_t axis : axes) goes[axis_of(axis, x.rank())] = 1;
  for (std::size_t i = x.rank(); i-- > 0;)
    if (goes[i]) x = reduced_along(x, i, how);
  if (attributes.whole("keepdims", 1)) return {x};
  Shape shape;
  for (std::size_t i = 0; i < x.rank(); ++i)
    if (!goes[i]) shape.push_back(x.shape[i]);
  return {with_shape(x, shape)};
}

Results softmax(const Attributes& attributes, const Inputs& inputs) {
  const Value& x = given(inputs, 0);
  const std::size_t axis = axis_of(attributes.whole("axis", -1), x.rank());
  const Value most = reduced_along(x, axis, Reduction::kMax);
  Value powers, result;
  with_float(x.type, [&](auto zero) {
    using T = decltype(zero);
    powers = zipped<T, T>(x, most, [](T a, T b) { return std::exp(a - b); });
    const Value sums = reduced_along(powers, axis, Reduction::kSum);
    result = zipped<T, T>(powers, sums, [](T a, T b) { return a / b; });
  });
  return {result};
}

Results keep(const Attributes& attributes, const Inputs& inputs) {
  return {keep_boxes(given(inputs, 0), given(inputs, 1), given(inputs, 2), attributes.real("iou_threshold"),
                     attributes.real("score_threshold"), attributes.whole("limit"))};
}

Results align(const Attributes& attributes, const Inputs& inputs) {
  require(inputs.size() > 2, "it reads no maps");
  for (std::size_t i = 0; i < inputs.size(); ++i) given(inputs, i);
  const std::vector<Value> maps(inputs.begin(), inputs.end() - 2);
  return {pyramid_roi_align(maps, inputs[maps.size()], inputs[maps.size() + 1], attributes.reals("strides"),
                            attributes.whole("size"))};
}

const std::map<std::string, Operator>& operators() {
  static const std::map<std::string, Operator> all{
      {"Abs", of_numbers<Magnitude>},
      {"Add", arithmetic<Plus>},
      {"And", logical<Both>},
      {"Cast", cast},
      {"Ceil", of_floats<Up>},
      {"Clip", clip},
      {"Concat", concatenate},
      {"Div", arithmetic<Over>},
      {"Equal", compared<std::equal_to<>>},
      {"Exp", of_floats<Exponential>},
      {"Expand", expand},
      {"Floor", of_floats<Down>},
      {"Gather", gather},
      {"GatherElements", gather_elements},
      {"GatherND", gather_nd},
      {"Greater", compared<std::greater<>>},
      {"GreaterOrEqual", compared<std::greater_equal<>>},
      {"Identity", identity},
      {"KeepBoxes", keep},
      {"Less", compared<std::less<>>},
      {"LessOrEqual", compared<std::less_equal<>>},
      {"Log", of_floats<Logarithm>},
      {"Max", folded<Larger>},
      {"Min", folded<Smaller>},
      {"Mod", modulo},
      {"Mul", arithmetic<Times>},
      {"Neg", of_numbers<Negative>},
      {"Not", logical_not},
      {"Or", logical<Either>},
      {"Pow", power},
      {"PyramidRoiAlign", align},
      {"ReduceMax", reduced<Reduction::kMax>},
      {"ReduceMin", reduced<Reduction::kMin>},
      {"ReduceSum", reduced<Reduction::kSum>},
      {"Reshape", reshape},
      {"ScatterElements", scatter_elements},
      {"Sigmoid", of_floats<Logistic>},
      {"Slice", slice},
      {"Softmax", softmax},
      {"Sqrt", of_floats<Root>},
      {"Squeeze", squeeze},
      {"Sub", arithmetic<Minus>},
      {"TopK", top_k},
      {"Transpose", transpose},
      {"Unsqueeze", unsqueeze},
      {"Where", where},
  };
  return all;
}

[[noreturn]] void missing(const char* name) {
  throw ProgramError(std::string("the attribute ") + name + " is missing or of another kind");
}

double to_real(const Json& value, const char* name) {
  if (value.kind != Json::Kind::kNumber) missing(name);
  const double found = to_double(value.text);
  if (!std::isfinite(found)) missing(name);
  return found;
}

std::int64_t to_whole(const Json& value, const char* name) {
  const double found = to_real(value, name);
  if (found != std::floor(found) || std::fabs(found) > 9007199254740992.0) missing(name);
  return static_cast<std::int64_t>(found);
}

}  // namespace

std::int64_t Attributes::whole(const char* name, std::int64_t otherwise) const {
  const Json* found = value_->find(name);
  return found ? to_whole(*found, name) : otherwise;
}

std::int64_t Attributes::whole(const char* name) const {
  const Json* found = value_->find(name);
  if (!found) missing(name);
  return to_whole(*found, name);
}

double Attributes::real(const char* name) const {
  const Json* found = value_->find(name);
  if (!found) missing(name);
  return to_real(*found, name);
}

std::vector<double> Attributes::reals(const char* name) const {
  const Json* found = value_->find(name);
  if (!found || found->kind != Json::Kind::kList) missing(name);
  std::vector<double> values;
  for (const Json& item : found->items) values.push_back(to_real(item, name));
  return values;
}

std::vector<std::int64_t> Attributes::wholes(const char* name) const {
  const Json* found = value_->find(name);
  std::vector<std::int64_t> values;
  if (!found) return values;
  if (found->kind != Json::Kind::kList) missing(name);
  for (const Json& item : found->items) values.push_back(to_whole(item, name));
  return values;
}

std::string Attributes::text(const char* name, const char* otherwise) const {
  const Json* found = value_->find(name);
  if (!found) return otherwise;
  if (found->kind != Json::Kind::kText) missing(name);
  return found->text;
}

Operator find_operator(const std::string& type) {
  const auto found = operators().find(type);
  return found == operators().end() ? nullptr : found->second;
}

Value new_value(int type, const Shape& shape) {
  const std::size_t bytes = elements(shape) * element_bytes(type);
  if (!element_bytes(type)) throw ProgramError("it makes an array of a type that is not known");
  return {type, shape,
          std::shared_ptr<char>(new char[std::max<std::size_t>(bytes, 1)], std::default_delete<char[]>())};
}

Value with_shape(const Value& value, const Shape& shape) { return {value.type, shape, value.memory}; }

std::vector<std::int64_t> whole_numbers(const Value& value) {
  std::vector<std::int64_t> found;
  const std::size_t count = value.count();
  if (value.type == DYNDEPLOY_INT64) {
    found.assign(value.data<std::int64_t>(), value.data<std::int64_t>() + count);
  } else if (value.type == DYNDEPLOY_INT32) {
    found.assign(value.data<std::int32_t>(), value.data<std::int32_t>() + count);
  } else {
    throw ProgramError("it counts with what is no whole number");
  }
  return found;
}

}  // namespace runtime
}  // namespace dyndeploy
