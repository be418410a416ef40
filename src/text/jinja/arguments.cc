#include "text/jinja/arguments.h"

#include "text/jinja/arithmetic.h"
#include "text/jinja/compare.h"

namespace calandra::jinja {

std::vector<Value> bind(const char* function, std::initializer_list<std::string_view> parameters, size_t required,
                        Arguments arguments) {
  if (arguments.positional.size() > parameters.size()) {
    type_error(std::string(function) + "() takes at most " + std::to_string(parameters.size()) + " argument(s) (" +
               std::to_string(arguments.positional.size()) + " given)");
  }
  std::vector<Value> bound = std::move(arguments.positional);
  bound.resize(parameters.size());
  for (auto& [name, value] : arguments.named) {
    size_t index = 0;
    while (index < parameters.size() && parameters.begin()[index] != name) ++index;
    if (index == parameters.size())
      type_error(std::string(function) + "() got an unexpected keyword argument '" + name + "'");
    if (!bound[index].is_missing())
      type_error(std::string(function) + "() got multiple values for argument '" + name + "'");
    bound[index] = std::move(value);
  }
  for (size_t i = 0; i < required; ++i) {
    if (bound[i].is_missing()) {
      type_error(std::string(function) + "() missing required argument '" + std::string(parameters.begin()[i]) +
                 "' (position " + std::to_string(i + 1) + ")");
    }
  }
  return bound;
}

int64_t integer_or(const Value& value, int64_t fallback, const char* what) {
  return value.is_missing() ? fallback : to_index(value, what);
}
bool truth_or(const Value& value, bool fallback) { return value.is_missing() ? fallback : truth(value); }

}  // namespace calandra::jinja
