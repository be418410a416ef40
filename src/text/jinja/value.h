// Values of a template: Python's, as far as templates can see them. Everything but namespaces, loops and iterators is
// immutable, so values are shared freely; equality of identity does not exist except for those.
#pragma once

#include "text/jinja/budget.h"
#include "text/jinja/marked_string.h"

#include <boost/multiprecision/cpp_int.hpp>
#include <boost/smart_ptr/intrusive_ptr.hpp>
#include <boost/smart_ptr/intrusive_ref_counter.hpp>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace calandra::jinja {

using BigInt = boost::multiprecision::cpp_int;

enum class Kind : uint8_t {
  kMissing,  // no value at all: an unset variable, an argument not given; templates never see it
  kUndefined,
  kNone,
  kBool,
  kInt,  // fits int64
  kBig,  // does not
  kFloat,
  kString,
  kBytes,  // from str.encode(); can only be printed
  kList,
  kTuple,
  kDict,
  kRange,
  kDictView,
  kIterator,
  kObject,  // namespace, macro, function, loop, …: attributes and calls are its own affair
};

// What a value points to. Charges its bytes to the meter that it was made under (null: compiled templates and
// contexts).
struct Heap : boost::intrusive_ref_counter<Heap> {
  virtual ~Heap() {
    if (meter != nullptr) meter->give(charged);
  }
  void charge(Meter* to, size_t bytes) {
    if (to == nullptr) return;
    to->take(bytes);
    meter = to;
    charged += bytes;
  }

  Meter* meter = nullptr;
  size_t charged = 0;
};

struct StringBody;
struct ListBody;
struct DictBody;
struct RangeBody;
struct ViewBody;
struct UndefinedBody;
struct IteratorBody;
struct ObjectBody;

class Value {
 public:
  Value() = default;  // missing
  static Value undefined() { return Value(Kind::kUndefined); }
  static Value undefined(Meter* meter, UndefinedBody body);
  static Value none() { return Value(Kind::kNone); }
  static Value boolean(bool value);
  static Value integer(int64_t value);
  static Value big(Meter* meter, const BigInt& value);  // becomes kInt where it fits
  static Value real(double value);
  static Value string(Meter* meter, MarkedString text, bool is_markup = false);
  static Value string(Meter* meter, std::string text) { return string(meter, MarkedString(std::move(text), false)); }
  static Value bytes(Meter* meter, MarkedString text);
  static Value list(Meter* meter, std::vector<Value> items) { return sequence(Kind::kList, meter, std::move(items)); }
  static Value tuple(Meter* meter, std::vector<Value> items) { return sequence(Kind::kTuple, meter, std::move(items)); }
  static Value sequence(Kind kind, Meter* meter, std::vector<Value> items);
  // Takes over a fresh body, and charges a fixed amount for it.
  static Value heap(Kind kind, Meter* meter, Heap* body);
  static Value shared(Kind kind, Heap* body) { return Value(kind, body); }  // one more reference to a body

  Kind kind() const { return kind_; }
  bool is(Kind kind) const { return kind_ == kind; }
  bool is_missing() const { return kind_ == Kind::kMissing; }
  bool is_undefined() const { return kind_ == Kind::kUndefined; }
  bool is_none() const { return kind_ == Kind::kNone; }
  bool is_bool() const { return kind_ == Kind::kBool; }
  bool is_string() const { return kind_ == Kind::kString; }
  bool is_markup() const;  // a string that needs no HTML escaping (jinja's Markup)
  bool is_integral() const { return kind_ == Kind::kBool || kind_ == Kind::kInt || kind_ == Kind::kBig; }
  bool is_number() const { return is_integral() || kind_ == Kind::kFloat; }

  bool as_bool() const { return scalar_.integer != 0; }
  int64_t as_int() const { return scalar_.integer; }  // kBool, kInt
  double as_real() const { return scalar_.real; }     // kFloat
  BigInt as_big() const;                              // any integral
  const MarkedString& as_string() const;              // kString, kBytes
  const std::string& text() const { return as_string().text(); }
  const std::vector<Value>& items() const;  // kList, kTuple
  const DictBody& as_dict() const;
  const RangeBody& as_range() const;
  const ViewBody& as_view() const;
  const UndefinedBody* as_undefined() const;  // may be null
  IteratorBody& as_iterator() const;
  ObjectBody& as_object() const;
  template <class Body>
  Body* object_as() const {  // null if this is no object of that type
    return kind_ == Kind::kObject ? dynamic_cast<Body*>(body_.get()) : nullptr;
  }

  bool same_body(const Value& other) const { return body_.get() == other.body_.get(); }
  const Heap* body() const { return body_.get(); }
  int depth() const;  // of nesting: 0 for what contains nothing

 private:
  explicit Value(Kind kind, Heap* body = nullptr) : kind_(kind), body_(body) {}

  Kind kind_ = Kind::kMissing;
  union {
    int64_t integer = 0;
    double real;
  } scalar_;
  boost::intrusive_ptr<Heap> body_;
};

// Deeper values are refused when they are made, so that printing, comparing and destroying may recurse.
constexpr int kMaxValueDepth = 300;

}  // namespace calandra::jinja
