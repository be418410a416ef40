#include "text/jinja/globals.h"

#include "text/jinja/arguments.h"
#include "text/jinja/compare.h"
#include "text/jinja/iterate.h"

#include <vector>

namespace calandra::jinja {
namespace {

constexpr int64_t kMaxRange = 100'000;

Value range(Interpreter& in, Arguments arguments) {
  const auto bound = bind("range", {"", "", ""}, 1, std::move(arguments));
  auto* body = new RangeBody();
  const Value result = Value::heap(Kind::kRange, &in.meter(), body);
  const bool one = bound[1].is_missing();
  body->start = one ? 0 : to_index(bound[0], "range()");
  body->stop = to_index(one ? bound[0] : bound[1], "range()");
  body->step = integer_or(bound[2], 1, "range()");
  if (body->step == 0) value_error("range() arg 3 must not be zero");
  if (body->size() > kMaxRange)
    fail("OverflowError", "Range too big. The sandbox blocks ranges larger than MAX_RANGE (100000).");
  return result;
}

// dict(mapping or pairs, **named), into `into`.
void fill(Interpreter& in, DictBody& into, const char* function, Arguments arguments) {
  if (arguments.positional.size() > 1) type_error(std::string(function) + " expected at most 1 argument");
  for (const Value& source : arguments.positional) {
    if (source.is(Kind::kDict)) {
      for (const auto& [key, value] : source.as_dict().entries) into.set(key, value);
      continue;
    }
    const auto iterator = iterate(in, source);
    while (const auto item = iterator->next(in)) {
      in.meter().step();
      const std::vector<Value> pair = collect(in, *item);
      if (pair.size() != 2)
        value_error("dictionary update sequence element has length " + std::to_string(pair.size()) + "; 2 is required");
      into.set(pair[0], pair[1]);
      in.meter().check(into.entries.size() * 64);
    }
  }
  for (const auto& [name, value] : arguments.named) into.set(in.string(name), value);
}

Value dict(Interpreter& in, Arguments arguments) {
  const boost::intrusive_ptr<DictBody> body(new DictBody());
  fill(in, *body, "dict", std::move(arguments));
  return make_dict(&in.meter(), body);
}

Value make_namespace(Interpreter& in, Arguments arguments) {
  auto* body = new NamespaceBody();
  const Value result = Value::heap(Kind::kObject, &in.meter(), body);
  in.collect_later(body, body);
  DictBody values;
  fill(in, values, "Namespace", std::move(arguments));
  for (const auto& [key, value] : values.entries) body->set(in.meter(), key, value);
  return result;
}

struct Cycler : ObjectBody {
  std::string type_name() const override { return "Cycler"; }
  std::string repr(Interpreter&) override { return "<jinja2.utils.Cycler object>"; }
  std::optional<Value> attribute(Interpreter& in, std::string_view name) override {
    if (name == "current") return items[position];
    if (name == "pos") return Value::integer(static_cast<int64_t>(position));
    if (name == "items") return Value::tuple(&in.meter(), items);
    const boost::intrusive_ptr<Cycler> self(this);
    if (name == "next") {
      return make_function(&in.meter(), "<bound method Cycler.next>", [self](Interpreter&, Arguments a) {
        bind("next", {}, 0, std::move(a));
        const Value item = self->items[self->position];
        self->position = (self->position + 1) % self->items.size();
        return item;
      });
    }
    if (name == "reset") {
      return make_function(&in.meter(), "<bound method Cycler.reset>", [self](Interpreter&, Arguments a) {
        bind("reset", {}, 0, std::move(a));
        self->position = 0;
        return Value::none();
      });
    }
    return std::nullopt;
  }

  std::vector<Value> items;
  size_t position = 0;
};

Value cycler(Interpreter& in, Arguments arguments) {
  if (!arguments.named.empty())
    type_error("Cycler.__init__() got an unexpected keyword argument '" + arguments.named[0].first + "'");
  if (arguments.positional.empty()) fail("RuntimeError", "at least one item has to be provided");
  auto* body = new Cycler();
  const Value result = Value::heap(Kind::kObject, &in.meter(), body);
  body->items = std::move(arguments.positional);
  body->charge(&in.meter(), body->items.size() * sizeof(Value));
  return result;
}

struct Joiner : ObjectBody {
  std::string type_name() const override { return "Joiner"; }
  std::string repr(Interpreter&) override { return "<jinja2.utils.Joiner object>"; }
  bool is_callable() const override { return true; }
  Value call(Interpreter& in, Arguments arguments) override {
    bind("Joiner", {}, 0, std::move(arguments));
    return std::exchange(used, true) ? separator : in.string("");
  }
  std::optional<Value> attribute(Interpreter&, std::string_view name) override {
    if (name == "sep") return separator;
    if (name == "used") return Value::boolean(used);
    return std::nullopt;
  }

  Value separator;
  bool used = false;
};

Value joiner(Interpreter& in, Arguments arguments) {
  const auto bound = bind("Joiner", {"sep"}, 0, std::move(arguments));
  auto* body = new Joiner();
  const Value result = Value::heap(Kind::kObject, &in.meter(), body);
  body->separator = bound[0].is_missing() ? in.string(", ") : bound[0];
  return result;
}

Value lipsum(Interpreter&, Arguments) { fail("UnsupportedError", "lipsum (random placeholder text) is not supported"); }

Value raise_exception(Interpreter& in, Arguments arguments) {
  const auto bound = bind("raise_exception", {"message"}, 1, std::move(arguments));
  fail("TemplateError", bound[0].is_none() ? "" : to_text(in, bound[0]).text());
}

Value strftime_now(Interpreter& in, Arguments arguments) {
  const auto bound = bind("strftime_now", {"format"}, 1, std::move(arguments));
  require_defined(bound[0]);
  if (!bound[0].is_string()) type_error("strftime() argument 1 must be str, not " + type_name(bound[0]));
  const std::string& format = bound[0].text();
  if (format.empty()) return in.string("");
  if (format.size() > 1000) value_error("strftime_now: the format is too long");
  // A space in front keeps the length from being zero, which strftime also answers when the room is too small.
  std::string text(format.size() * 64 + 64, '\0');
  const std::string spaced = " " + format;
  text.resize(std::strftime(text.data(), text.size(), spaced.c_str(), &in.now()));
  return in.string(text.substr(std::min<size_t>(1, text.size())));
}

}  // namespace

std::string NamespaceBody::repr(Interpreter& in) {
  const Interpreter::Nesting nesting(in);
  std::string text = "<Namespace {";
  for (size_t i = 0; i < attributes.entries.size(); ++i) {
    const auto& [key, value] = attributes.entries[i];
    text += (i > 0 ? ", " : "") + calandra::jinja::repr(in, key) + ": " + calandra::jinja::repr(in, value);
    in.meter().check(text.size());
  }
  return text + "}>";
}

void add_globals(Context& context) {
  context.emplace("range", make_function(nullptr, "<class 'range'>", range));
  context.emplace("dict", make_function(nullptr, "<class 'dict'>", dict));
  context.emplace("namespace", make_function(nullptr, "<class 'jinja2.utils.Namespace'>", make_namespace));
  context.emplace("cycler", make_function(nullptr, "<class 'jinja2.utils.Cycler'>", cycler));
  context.emplace("joiner", make_function(nullptr, "<class 'jinja2.utils.Joiner'>", joiner));
  context.emplace("lipsum", make_function(nullptr, "<function generate_lorem_ipsum>", lipsum));
  context.emplace("raise_exception", make_function(nullptr, "<function raise_exception>", raise_exception));
  context.emplace("strftime_now", make_function(nullptr, "<function strftime_now>", strftime_now));
}

}  // namespace calandra::jinja
