#include "text/jinja/template.h"

#include "text/jinja/globals.h"
#include "text/jinja/interpreter.h"
#include "text/jinja/parser.h"

namespace calandra::jinja {
namespace {

constexpr size_t kMaxSource = size_t{1} << 20;

// Not charged for its bytes, which the request's limits bound, but known to the meter, so that comparing it costs
// steps.
Value watched(Value value, Meter& meter) {
  if (value.body() != nullptr) const_cast<Heap*>(value.body())->meter = &meter;
  return value;
}

// Depth is bounded by the JSON parser, and again when the value is made.
Value from_json(const json::value& value, bool is_input, Meter& meter) {
  const auto text = [&](std::string_view bytes) {
    return watched(Value::string(nullptr, MarkedString(std::string(bytes), is_input)), meter);
  };
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
      return text(value.get_string());
    case json::kind::array: {
      std::vector<Value> items;
      items.reserve(value.get_array().size());
      for (const json::value& item : value.get_array()) items.push_back(from_json(item, is_input, meter));
      return watched(Value::list(nullptr, std::move(items)), meter);
    }
    case json::kind::object: {
      const boost::intrusive_ptr<DictBody> dict(new DictBody());
      for (const auto& [key, item] : value.get_object()) dict->set(text(key), from_json(item, is_input, meter));
      return watched(make_dict(nullptr, dict), meter);
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
  Meter meter(budgets);  // before all values, which refer to it
  Context context;
  for (const Variable& variable : variables)
    context[variable.name] = from_json(variable.value, variable.is_input, meter);
  add_globals(context);
  Interpreter interpreter(*tree_, meter, context, now);
  return interpreter.run();
}

}  // namespace calandra::jinja
