#include "text/jinja/iterate.h"

#include "text/jinja/compare.h"
#include "text/jinja/interpreter.h"
#include "text/jinja/unicode.h"

namespace calandra::jinja {
namespace {

// Over lists, tuples, dicts, their views, ranges and strings: holds the value and an index.
struct IndexIterator : IteratorBody {
  explicit IndexIterator(Value over) : source(std::move(over)) {}

  std::optional<Value> next(Interpreter& in) override {
    switch (source.kind()) {
      case Kind::kList:
      case Kind::kTuple:
        return index < source.items().size() ? std::optional(source.items()[index++]) : std::nullopt;
      case Kind::kRange: {
        const RangeBody& range = source.as_range();
        const auto at = static_cast<int64_t>(index);
        if (at >= range.size()) return std::nullopt;
        ++index;
        return Value::integer(range.at(at));
      }
      case Kind::kString: {
        const MarkedString& text = source.as_string();
        if (index >= text.size()) return std::nullopt;
        const size_t begin = index;
        next_char(text.text(), index);
        return Value::string(&in.meter(),
                             text.slice(begin, index));  // QUIRK: the characters of markup are plain strings
      }
      case Kind::kDict:
        return entry(in, source.as_dict(), ViewBody::kKeys);
      case Kind::kDictView:
        return entry(in, source.as_view().dict.as_dict(), source.as_view().what);
      default:
        return std::nullopt;
    }
  }

  std::optional<Value> entry(Interpreter& in, const DictBody& dict, ViewBody::What what) {
    if (index >= dict.entries.size()) return std::nullopt;
    const auto& [key, value] = dict.entries[index++];
    if (what == ViewBody::kKeys) return key;
    if (what == ViewBody::kValues) return value;
    return Value::tuple(&in.meter(), {key, value});
  }

  const char* type_name() const override { return "iterator"; }

  Value source;
  size_t index = 0;
};

struct ItemIterator : IteratorBody {
  ItemIterator(std::vector<Value> all, const char* type) : items(std::move(all)), type(type) {}
  std::optional<Value> next(Interpreter&) override {
    return index < items.size() ? std::optional(items[index++]) : std::nullopt;
  }
  const char* type_name() const override { return type; }

  std::vector<Value> items;
  const char* type;
  size_t index = 0;
};

struct GeneratorIterator : IteratorBody {
  explicit GeneratorIterator(std::function<std::optional<Value>(Interpreter&)> next) : make(std::move(next)) {}
  std::optional<Value> next(Interpreter& in) override {
    if (done) return std::nullopt;
    const Interpreter::Nesting nesting(in);  // generators over generators nest
    if (running) value_error("generator already executing");
    running = true;
    std::optional<Value> item;
    try {
      item = make(in);
    } catch (...) {
      done = true;
      running = false;
      throw;
    }
    running = false;
    done = !item.has_value();
    return item;
  }

  std::function<std::optional<Value>(Interpreter&)> make;
  bool running = false;
  bool done = false;
};

}  // namespace

bool is_iterable(const Value& value) {
  switch (value.kind()) {
    case Kind::kUndefined:
    case Kind::kString:
    case Kind::kList:
    case Kind::kTuple:
    case Kind::kDict:
    case Kind::kRange:
    case Kind::kDictView:
    case Kind::kIterator:
      return true;
    case Kind::kObject:
      return value.as_object().is_iterable();
    default:
      return false;
  }
}

boost::intrusive_ptr<IteratorBody> iterate(Interpreter& in, const Value& value) {
  if (value.is(Kind::kIterator)) return &value.as_iterator();
  if (!is_iterable(value)) type_error("'" + type_name(value) + "' object is not iterable");
  if (value.is(Kind::kObject)) {
    return new GeneratorIterator([value](Interpreter& interpreter) { return value.as_object().next(interpreter); });
  }
  in.meter().step();
  return new IndexIterator(value);
}

std::vector<Value> collect(Interpreter& in, const Value& value) {
  if (value.is(Kind::kList) || value.is(Kind::kTuple)) {
    in.meter().check(value.items().size() * sizeof(Value));
    in.meter().step(static_cast<int64_t>(value.items().size() / 8));
    return value.items();
  }
  std::vector<Value> items;
  const auto iterator = iterate(in, value);
  while (auto item = iterator->next(in)) {
    in.meter().step();
    in.meter().check((items.size() + 1) * sizeof(Value));
    items.push_back(std::move(*item));
  }
  return items;
}

bool has_length(const Value& value) {
  switch (value.kind()) {
    case Kind::kUndefined:
    case Kind::kString:
    case Kind::kBytes:
    case Kind::kList:
    case Kind::kTuple:
    case Kind::kDict:
    case Kind::kRange:
    case Kind::kDictView:
      return true;
    default:
      return false;
  }
}

int64_t length_of(Interpreter& in, const Value& value) {
  switch (value.kind()) {
    case Kind::kUndefined:
      return 0;
    case Kind::kString:
      in.meter().work(value.text().size());
      return static_cast<int64_t>(char_count(value.text()));
    case Kind::kBytes:
      return static_cast<int64_t>(value.text().size());
    case Kind::kList:
    case Kind::kTuple:
      return static_cast<int64_t>(value.items().size());
    case Kind::kDict:
      return static_cast<int64_t>(value.as_dict().entries.size());
    case Kind::kRange:
      return value.as_range().size();
    case Kind::kDictView:
      return static_cast<int64_t>(value.as_view().dict.as_dict().entries.size());
    case Kind::kObject:
      if (const auto length = value.as_object().length(in)) return *length;
      break;
    default:
      break;
  }
  type_error("object of type '" + type_name(value) + "' has no len()");
}

Value reversed(Interpreter& in, const Value& value) {
  const bool is_sequence = value.is(Kind::kList) || value.is(Kind::kTuple) || value.is(Kind::kRange) ||
                           value.is(Kind::kDict) || value.is(Kind::kDictView);
  std::vector<Value> items = collect(in, value);
  std::reverse(items.begin(), items.end());
  if (!is_sequence) return Value::list(&in.meter(), std::move(items));  // what cannot be read backwards is copied
  return iterator_over(in, std::move(items), "list_reverseiterator");
}

std::vector<Value> characters(Interpreter& in, const Value& string) { return collect(in, string); }

Value iterator_over(Interpreter& in, std::vector<Value> items, const char* type_name) {
  const size_t bytes = items.size() * sizeof(Value);
  auto* body = new ItemIterator(std::move(items), type_name);
  const Value result = Value::heap(Kind::kIterator, &in.meter(), body);
  body->charge(&in.meter(), bytes);
  return result;
}

Value generator(Interpreter& in, std::function<std::optional<Value>(Interpreter&)> next) {
  return Value::heap(Kind::kIterator, &in.meter(), new GeneratorIterator(std::move(next)));
}

}  // namespace calandra::jinja
