#include "text/jinja/template.h"

#include "text/jinja/globals.h"
#include "text/jinja/interpreter.h"
#include "text/jinja/parser.h"

namespace calandra::jinja {
namespace {

constexpr size_t kMaxSource = size_t{1} << 20;

// Depth is bounded by the JSON parser, and again when the value is made.
Value from_json(const json::value& value, bool is_input) {
  switch (value.kind()) {
    case json::kind::null:
      return Value::none();
    case json::kind::bool_:
      return Value::boolean(value.get_bool());
    case json::kind::int64:
      return Value::integer(value.get_int64());
    case json::kind::uint64:
      return Value::big(nullptr, BigInt(value.get_uint64()));
    case json::kind::double_:
      return Value::real(value.get_double());
    case json::kind::string:
      return Value::string(nullptr, MarkedString(std::string(value.get_string()), is_input));
    case json::kind::array: {
      std::vector<Value> items;
      items.reserve(value.get_array().size());
      for (const json::value& item : value.get_array()) items.push_back(from_json(item, is_input));
      return Value::list(nullptr, std::move(items));
    }
    case json::kind::object: {
      const boost::intrusive_ptr<DictBody> dict(new DictBody());
      for (const auto& [key, item] : value.get_object()) {
        dict->set(Value::string(nullptr, MarkedString(std::string(key), is_input)), from_json(item, is_input));
      }
      return make_dict(nullptr, dict);
    }
  }
  return Value::none();
}

}  // namespace

Template::Template(std::string_view source) {
  if (source.size() > kMaxSource) throw Failure("BudgetError", "the template is longer than 1 MiB");
  tree_ = parse(source);
}

Template::~Template() = default;
Template::Template(Template&&) noexcept = default;
Template& Template::operator=(Template&&) noexcept = default;

MarkedString Template::render(const std::vector<Variable>& variables, const std::tm& now,
                              const Budgets& budgets) const {
  Context context;
  for (const Variable& variable : variables) context[variable.name] = from_json(variable.value, variable.is_input);
  add_globals(context);
  Interpreter interpreter(*tree_, budgets, context, now);
  return interpreter.run();
}

}  // namespace calandra::jinja
