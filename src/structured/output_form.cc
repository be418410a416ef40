#include "structured/output_form.h"

#include <fmt/format.h>

#include <algorithm>

namespace calandra {
namespace {

constexpr size_t kMostBytes = size_t{256} << 10;
constexpr int kDeepest = 64;
constexpr int64_t kMostValues = 20'000;   // of a schema: JSON values in all
constexpr int64_t kMostRepeats = 10'000;  // minItems, maxLength, {m,n}: each is written out
constexpr int64_t kMostBrackets = 2'000;  // of an expression or grammar
// What compiling takes grows with their square, and with this sum: at either limit about half a second.
constexpr int64_t kMostProperties = 1'000;       // of one object
constexpr int64_t kMostCounted = 1'000;          // of one object whose properties are counted: their number times that
constexpr int64_t kMostPatternRepeats = 20'000;  // of all patterns of a schema

constexpr std::string_view kCounts[] = {"minItems",    "maxItems",    "minLength",     "maxLength",
                                        "minContains", "maxContains", "minProperties", "maxProperties"};

// Keywords that xgrammar passes over in silence, or takes in part: an answer could break them.
constexpr std::string_view kNotKept[] = {"not",
                                         "if",
                                         "then",
                                         "else",
                                         "patternProperties",
                                         "uniqueItems",
                                         "contains",
                                         "minContains",
                                         "maxContains",
                                         "dependentRequired",
                                         "dependencies",
                                         "dependentSchemas",
                                         "propertyNames",
                                         "unevaluatedItems",
                                         "unevaluatedProperties"};

// Formats whose rule of xgrammar takes more than is valid ("01.2.3.4", February 30), as patterns that do not. Leap days
// are left out.
struct FormatPattern {
  std::string_view format, pattern;
};
constexpr FormatPattern kFormats[] = {
    {"ipv4", R"(^((25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])\.){3}(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])$)"},
    {"date",
     "^[1-9][0-9]{3}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|"
     "2[0-8]))$"},
};

// Calls `each` with the schemas right inside of one.
template <class Object, class F>
void visit_inner(Object& object, const F& each) {
  for (const std::string_view key : {"properties", "$defs", "definitions"})
    if (auto* inner = object.if_contains(key); inner != nullptr && inner->is_object())
      for (auto&& member : inner->get_object()) each(member.value());
  for (const std::string_view key : {"prefixItems", "items", "anyOf", "oneOf", "allOf"})
    if (auto* inner = object.if_contains(key); inner != nullptr && inner->is_array())
      for (auto& item : inner->get_array()) each(item);
  for (const std::string_view key : {"items", "additionalProperties", "additionalItems"})
    if (auto* inner = object.if_contains(key)) each(*inner);
}

void spell_formats(json::value& schema) {
  if (!schema.is_object()) return;
  json::object& object = schema.get_object();
  const json::value* format = object.if_contains("format");
  for (const FormatPattern& known : kFormats) {
    if (format == nullptr || !format->is_string() || format->get_string() != known.format || object.contains("pattern"))
      continue;
    object["pattern"] = known.pattern;
    object.erase("format");
    break;
  }
  visit_inner(object, spell_formats);
}

// The first keyword of the schema, or of one inside of it, that would not be kept.
std::string not_kept(const json::value& schema) {
  if (!schema.is_object()) return "";
  const json::object& object = schema.get_object();
  for (const std::string_view keyword : kNotKept) {
    const json::value* value = object.if_contains(keyword);
    if (value != nullptr && *value != json::value(false)) return fmt::format("{} is not supported", keyword);
  }
  std::string wrong;
  const auto each = [&](const json::value& inner) {
    if (wrong.empty()) wrong = not_kept(inner);
  };
  visit_inner(object, each);
  return wrong;
}

struct SchemaCount {
  int64_t values = 0, pattern_repeats = 0;
  std::string wrong;

  void visit(const json::value& value, int depth) {
    if (!wrong.empty()) return;
    if (depth > kDeepest) wrong = fmt::format("it is nested deeper than {}", kDeepest);
    if (++values > kMostValues) wrong = fmt::format("it has more than {} values", kMostValues);
    if (value.is_array())
      for (const json::value& item : value.get_array()) visit(item, depth + 1);
    if (!value.is_object()) return;
    check_counted(value.get_object());
    for (const auto& [key, member] : value.get_object()) {
      const bool is_count =
          std::find(std::begin(kCounts), std::end(kCounts), std::string_view(key)) != std::end(kCounts);
      if (is_count && member.is_number() && !(member.to_number<double>() <= kMostRepeats))
        wrong = fmt::format("{} is above {}", std::string_view(key), kMostRepeats);
      if (key == "pattern" && member.is_string() && wrong.empty()) {
        wrong = too_much_of_pattern(member.get_string(), &pattern_repeats);
        if (pattern_repeats > kMostPatternRepeats)
          wrong = fmt::format("the repeats of its patterns add up to more than {}", kMostPatternRepeats);
      }
      if (key == "properties" && member.is_object() && std::ssize(member.get_object()) > kMostProperties)
        wrong = fmt::format("an object has more than {} properties", kMostProperties);
      visit(member, depth + 1);
    }
  }

  void check_counted(const json::object& object) {
    const json::value* properties = object.if_contains("properties");
    if (properties == nullptr || !properties->is_object()) return;
    double most = 0;
    for (const std::string_view key : {"minProperties", "maxProperties"})
      if (const json::value* count = object.if_contains(key); count != nullptr && count->is_number())
        most = std::max(most, count->to_number<double>());
    if (most * static_cast<double>(properties->get_object().size()) > kMostCounted)
      wrong =
          fmt::format("the number of its properties times minProperties or maxProperties is above {}", kMostCounted);
  }

  // Brackets, and the product of nested repeats, which are written out: (a{100}){100} is 10,000 of them.
  // Adds them to `sum`.
  static std::string too_much_of_pattern(std::string_view text, int64_t* sum = nullptr) {
    int64_t brackets = 0, product = 1;
    for (size_t i = 0; i < text.size(); ++i) {
      if (text[i] == '\\') {
        ++i;
        continue;
      }
      if (text[i] == '(') ++brackets;
      if (text[i] != '{') continue;
      int64_t most = 0, number = 0;
      for (++i; i < text.size() && text[i] != '}'; ++i) {
        number =
            text[i] >= '0' && text[i] <= '9' ? std::min<int64_t>(number * 10 + text[i] - '0', kMostRepeats + 1) : 0;
        most = std::max(most, number);
      }
      if (sum != nullptr) *sum += most;
      product = std::min(product * std::max<int64_t>(most, 1), kMostRepeats + 1);
    }
    if (brackets > kMostBrackets) return fmt::format("it has more than {} brackets", kMostBrackets);
    if (product > kMostRepeats) return fmt::format("its repeats multiply to more than {}", kMostRepeats);
    return "";
  }
};

}  // namespace

OutputForm OutputForm::json_schema(const json::value& schema, bool strict) {
  json::value spelled = schema;
  spell_formats(spelled);
  return {.kind = Kind::kJsonSchema, .text = to_json(spelled), .strict = strict};
}

OutputForm OutputForm::choice(const std::vector<std::string>& texts) {
  std::string grammar = "root ::= ";
  for (size_t i = 0; i < texts.size(); ++i) {
    grammar += i == 0 ? "\"" : " | \"";
    for (const char c : texts[i]) {
      if (c == '"' || c == '\\') grammar += '\\';
      if (static_cast<unsigned char>(c) < 0x20)
        grammar += fmt::format("\\x{:02x}", c);
      else
        grammar += c;
    }
    grammar += '"';
  }
  return {.kind = Kind::kEbnf, .text = std::move(grammar)};
}

OutputForm OutputForm::regex(std::string_view expression) {
  std::string text;
  bool in_class = false;
  for (size_t i = 0; i < expression.size(); ++i) {
    const char c = expression[i];
    if (c == '.' && !in_class) {
      text += "[^\\n]";
      continue;
    }
    text += c;
    if (c == '\\' && i + 1 < expression.size()) text += expression[++i];
    if (c == '[') in_class = true;
    if (c == ']') in_class = false;
  }
  return {.kind = Kind::kRegex, .text = std::move(text)};
}

std::string refusal_of(const OutputForm& form) {
  if (form.text.size() > kMostBytes) return fmt::format("it has more than {} bytes", kMostBytes);
  switch (form.kind) {
    case OutputForm::Kind::kJsonObject:
      return "";
    case OutputForm::Kind::kRegex:
    case OutputForm::Kind::kEbnf:
      return SchemaCount::too_much_of_pattern(form.text);
    case OutputForm::Kind::kJsonSchema:
    case OutputForm::Kind::kStructuralTag:
      break;
  }
  boost::system::error_code failed;
  const json::value value = json::parse(form.text, failed, {}, {.max_depth = 256});
  if (failed) return "it is no JSON";
  SchemaCount count;
  count.visit(value, 0);
  if (count.wrong.empty() && form.kind == OutputForm::Kind::kJsonSchema) return not_kept(value);
  return count.wrong;
}

}  // namespace calandra
