#include "text/jinja/value.h"

#include "text/jinja/compare.h"
#include "text/jinja/objects.h"

#include <limits>

namespace calandra::jinja {
namespace {

// Roughly what one entry costs with its share of the container.
constexpr size_t kItemBytes = sizeof(Value);
constexpr size_t kEntryBytes = 2 * sizeof(Value) + 32;
constexpr size_t kBodyBytes = 64;
constexpr size_t kObjectBytes = 192;

int checked_depth(int inner) {
  if (inner + 1 > kMaxValueDepth) throw Failure("RecursionError", "a value is nested too deep");
  return inner + 1;
}

}  // namespace

Value Value::undefined(Meter* meter, UndefinedBody body) {
  auto* copy = new UndefinedBody();
  copy->hint = std::move(body.hint);
  copy->owner_type = std::move(body.owner_type);
  copy->name = std::move(body.name);
  copy->is_unsafe = body.is_unsafe;
  return heap(Kind::kUndefined, meter, copy);
}

Value Value::heap(Kind kind, Meter* meter, Heap* body) {
  Value result(kind, body);
  body->charge(meter, kObjectBytes);
  return result;
}

Value Value::boolean(bool value) {
  Value result(Kind::kBool);
  result.scalar_.integer = value ? 1 : 0;
  return result;
}

Value Value::integer(int64_t value) {
  Value result(Kind::kInt);
  result.scalar_.integer = value;
  return result;
}

Value Value::big(Meter* meter, const BigInt& value) {
  if (value >= std::numeric_limits<int64_t>::min() && value <= std::numeric_limits<int64_t>::max()) {
    return integer(static_cast<int64_t>(value));
  }
  auto* body = new BigBody();
  Value result(Kind::kBig, body);
  body->value = value;
  body->charge(meter, kBodyBytes + value.backend().size() * sizeof(boost::multiprecision::limb_type));
  return result;
}

Value Value::real(double value) {
  Value result(Kind::kFloat);
  result.scalar_.real = value;
  return result;
}

Value Value::string(Meter* meter, MarkedString text, bool is_markup) {
  auto* body = new StringBody();
  Value result(Kind::kString, body);
  body->text = std::move(text);
  body->is_markup = is_markup;
  body->charge(meter, kBodyBytes + body->text.bytes());
  return result;
}

Value Value::bytes(Meter* meter, MarkedString text) {
  Value result = string(meter, std::move(text));
  result.kind_ = Kind::kBytes;
  return result;
}

Value Value::sequence(Kind kind, Meter* meter, std::vector<Value> items) {
  auto* body = new ListBody();
  Value result(kind, body);
  int depth = 0;
  for (const Value& item : items) depth = std::max(depth, item.depth());
  body->items = std::move(items);
  body->depth = checked_depth(depth);
  body->charge(meter, kBodyBytes + body->items.size() * kItemBytes);
  return result;
}

Value make_dict(Meter* meter, boost::intrusive_ptr<DictBody> dict) {
  int depth = 0;
  for (const auto& [key, value] : dict->entries) depth = std::max({depth, key.depth(), value.depth()});
  dict->depth = checked_depth(depth);
  dict->charge(meter, kBodyBytes + dict->entries.size() * kEntryBytes);
  return Value::shared(Kind::kDict, dict.get());
}

Value make_function(Meter* meter, std::string shown, FunctionBody::Code code) {
  return Value::heap(Kind::kObject, meter, new FunctionBody(std::move(shown), std::move(code)));
}

bool Value::is_markup() const {
  return kind_ == Kind::kString && static_cast<const StringBody*>(body_.get())->is_markup;
}
BigInt Value::as_big() const {
  return kind_ == Kind::kBig ? static_cast<const BigBody*>(body_.get())->value : BigInt(scalar_.integer);
}
const MarkedString& Value::as_string() const {
  // Arguments of templates come here; a missing check of their kind must fail the template, not read another body.
  if (kind_ != Kind::kString && kind_ != Kind::kBytes) type_error("expected a string, not '" + type_name(*this) + "'");
  return static_cast<const StringBody*>(body_.get())->text;
}
const std::vector<Value>& Value::items() const { return static_cast<const ListBody*>(body_.get())->items; }
const DictBody& Value::as_dict() const { return *static_cast<const DictBody*>(body_.get()); }
const RangeBody& Value::as_range() const { return *static_cast<const RangeBody*>(body_.get()); }
const ViewBody& Value::as_view() const { return *static_cast<const ViewBody*>(body_.get()); }
const UndefinedBody* Value::as_undefined() const { return static_cast<const UndefinedBody*>(body_.get()); }
IteratorBody& Value::as_iterator() const { return *static_cast<IteratorBody*>(body_.get()); }
ObjectBody& Value::as_object() const { return *static_cast<ObjectBody*>(body_.get()); }

int Value::depth() const {
  switch (kind_) {
    case Kind::kList:
    case Kind::kTuple:
      return static_cast<const ListBody*>(body_.get())->depth;
    case Kind::kDict:
      return as_dict().depth;
    case Kind::kDictView:
      return as_view().dict.depth() + 1;
    default:
      return 0;
  }
}

int64_t RangeBody::size() const {
  const BigInt span = BigInt(stop) - start;
  if (step > 0) return span <= 0 ? 0 : static_cast<int64_t>((span + step - 1) / step);
  return span >= 0 ? 0 : static_cast<int64_t>((-span - step - 1) / -BigInt(step));
}

void DictBody::set(const Value& key, const Value& value) {
  const size_t hash = hash_of(key);
  if (const Value* old = find(key)) {
    *const_cast<Value*>(old) = value;
    return;
  }
  entries.emplace_back(key, value);
  if (entries.size() == kIndexFrom) {
    for (size_t i = 0; i + 1 < entries.size(); ++i) index_.emplace(hash_of(entries[i].first), i);
  }
  if (entries.size() >= kIndexFrom) index_.emplace(hash, entries.size() - 1);
}

const Value* DictBody::find(const Value& key) const {
  const size_t hash = hash_of(key);
  if (entries.size() < kIndexFrom) {
    for (const auto& [candidate, value] : entries) {
      if (equal(candidate, key)) return &value;
    }
    return nullptr;
  }
  const auto [begin, end] = index_.equal_range(hash);
  for (auto entry = begin; entry != end; ++entry) {
    if (equal(entries[entry->second].first, key)) return &entries[entry->second].second;
  }
  return nullptr;
}

const Value* DictBody::find(std::string_view key) const {
  if (entries.size() < kIndexFrom) {
    for (const auto& [candidate, value] : entries) {
      if (candidate.is_string() && candidate.text() == key) return &value;
    }
    return nullptr;
  }
  return find(Value::string(nullptr, std::string(key)));
}

Value Arguments::take(std::string_view name) {
  for (auto argument = named.begin(); argument != named.end(); ++argument) {
    if (argument->first == name) {
      Value value = std::move(argument->second);
      named.erase(argument);
      return value;
    }
  }
  return Value();
}

Value ObjectBody::call(Interpreter&, Arguments) { type_error("'" + type_name() + "' object is not callable"); }

std::optional<Value> NamespaceBody::attribute(Interpreter&, std::string_view name) {
  const Value* value = attributes.find(name);
  return value == nullptr ? std::nullopt : std::optional(*value);
}

void NamespaceBody::set(Meter& meter, const Value& name, const Value& value) {
  const size_t before = attributes.entries.size();
  attributes.set(name, value);
  if (attributes.entries.size() > before) charge(&meter, kEntryBytes);
}

}  // namespace calandra::jinja
