#include "structured/schema_spelling.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <span>
#include <unordered_set>
#include <utility>
#include <vector>

#include "text/utf8.h"

namespace calandra {
namespace {

using Names = std::span<const std::string_view>;

bool contains(Names names, std::string_view name) { return std::find(names.begin(), names.end(), name) != names.end(); }

const json::value* first_of(const json::object& object, Names names) {
  for (const std::string_view name : names)
    if (const json::value* value = object.if_contains(name)) return value;
  return nullptr;
}

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
                                         "unevaluatedProperties",
                                         "$dynamicRef",
                                         "$recursiveRef"};
// Of these it takes the first that is there, and nothing beside it.
constexpr std::string_view kAlone[] = {"$ref", "const", "enum", "anyOf", "oneOf", "allOf"};
// What is kept of a schema with a type.
constexpr std::string_view kOfText[] = {"minLength", "maxLength", "pattern"},
                           kOfNumbers[] = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"},
                           kOfObjects[] = {"properties", "required", "additionalProperties", "minProperties",
                                           "maxProperties"},
                           kOfLists[] = {"items", "prefixItems", "additionalItems", "minItems", "maxItems"};
struct TypeKeywords {
  const char* type;
  Names keywords;
};
constexpr TypeKeywords kTypes[] = {
    {"object", kOfObjects}, {"array", kOfLists}, {"string", kOfText}, {"number", kOfNumbers}};

// xgrammar's own rules of formats take more than is valid ("01.2.3.4", February 30, quotes of an e-mail address without
// their backslashes) or do not exist. Leap days and leap seconds are left out.
#define CALANDRA_DATE                                                                                                 \
  "[1-9][0-9]{3}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-" \
  "8]))"
#define CALANDRA_TIME "([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\\.[0-9]{1,6})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"
#define CALANDRA_LABEL "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
#define CALANDRA_EMAIL \
  "[A-Za-z0-9_!#$%&'*+/=?^`{|}~-]+(\\.[A-Za-z0-9_!#$%&'*+/=?^`{|}~-]+)*@" CALANDRA_LABEL "(\\." CALANDRA_LABEL ")*"
#define CALANDRA_POINTER "(/([^~/]|~[01])*)*"
struct FormatPattern {
  std::string_view format, pattern;
};
constexpr FormatPattern kFormats[] = {
    {"ipv4", R"(^((25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])\.){3}(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])$)"},
    {"ipv6",
     "^(([0-9a-fA-F]{1,4}:){7}[0-9a-fA-F]{1,4}|([0-9a-fA-F]{1,4}:){1,7}:|([0-9a-fA-F]{1,4}:){1,6}:[0-9a-fA-F]{1,4}|"
     "([0-9a-fA-F]{1,4}:){1,4}(:[0-9a-fA-F]{1,4}){1,3}|[0-9a-fA-F]{1,4}:(:[0-9a-fA-F]{1,4}){1,6}|"
     ":((:[0-9a-fA-F]{1,4}){1,7}|:))$"},
    {"date", "^" CALANDRA_DATE "$"},
    {"time", "^" CALANDRA_TIME "$"},
    {"date-time", "^" CALANDRA_DATE "T" CALANDRA_TIME "$"},
    {"email", "^" CALANDRA_EMAIL "$"},
    {"idn-email", "^" CALANDRA_EMAIL "$"},
    {"hostname", "^" CALANDRA_LABEL "(\\." CALANDRA_LABEL ")*$"},
    {"idn-hostname", "^" CALANDRA_LABEL "(\\." CALANDRA_LABEL ")*$"},
    {"json-pointer", "^" CALANDRA_POINTER "$"},
    {"relative-json-pointer", "^(0|[1-9][0-9]*)(#|" CALANDRA_POINTER ")$"},
};
#undef CALANDRA_DATE
#undef CALANDRA_TIME
#undef CALANDRA_LABEL
#undef CALANDRA_EMAIL
#undef CALANDRA_POINTER

// Formats that xgrammar has a right rule of, and then no eye for more of a string.
constexpr std::string_view kBuiltInFormats[] = {"uuid", "uri", "uri-reference", "uri-template", "duration"};

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

bool is_known_format(const json::value& format) {
  return format.is_string() && (contains(kBuiltInFormats, format.get_string()) ||
                                std::any_of(std::begin(kFormats), std::end(kFormats), [&](const FormatPattern& known) {
                                  return known.format == format.get_string();
                                }));
}

bool has_type(const json::value& value, const json::value& type) {
  if (const json::array* types = type.if_array())
    return std::any_of(types->begin(), types->end(), [&](const json::value& one) { return has_type(value, one); });
  const double number = value.is_number() ? value.to_number<double>() : 0.5;
  return (type == "string" && value.is_string()) || (type == "boolean" && value.is_bool()) ||
         (type == "null" && value.is_null()) || (type == "number" && value.is_number()) ||
         (type == "integer" && number == std::trunc(number)) || (type == "array" && value.is_array()) ||
         (type == "object" && value.is_object());
}

// What stands in a string of JSON as it is, so many times: xgrammar's own rule of lengths has control characters too.
// It is not in ASCII, so that xgrammar counts instead of writing the repeats out; U+0080 is left out for that.
constexpr std::string_view kAnyText = "^[^\"\\\\\\x00-\\x1f\u0080]{";

void spell_text(json::object& object) {
  const json::value* format = object.if_contains("format");
  if (const json::value* pattern = object.if_contains("pattern"); pattern != nullptr && pattern->is_string()) {
    object["pattern"] = spelled_pattern(pattern->get_string());
    return;
  }
  for (const FormatPattern& known : kFormats) {
    if (format == nullptr || !format->is_string() || format->get_string() != known.format) continue;
    object["pattern"] = spelled_pattern(known.pattern);
    object.erase("format");
    return;
  }
  if (format != nullptr && is_known_format(*format)) return;
  const json::value *least = object.if_contains("minLength"), *most = object.if_contains("maxLength");
  const auto is_count = [](const json::value* count) {
    return count == nullptr || (count->is_int64() && count->get_int64() >= 0);
  };
  if ((least == nullptr && most == nullptr) || !is_count(least) || !is_count(most)) return;
  const int64_t lowest = least == nullptr ? 0 : least->get_int64();
  const int64_t highest = most == nullptr ? kMostText : std::min(most->get_int64(), kMostText);
  if (highest < lowest) return;
  object["pattern"] = fmt::format("{}{},{}}}$", kAnyText, lowest, highest);
  object.erase("minLength");
  object.erase("maxLength");
}

// xgrammar asks only for properties that have a schema of their own.
void name_required(json::object& object) {
  const json::value* required = object.if_contains("required");
  if (required == nullptr || !required->is_array() || required->get_array().empty()) return;
  const json::array names = required->get_array();  // a copy: members move when one is added
  const json::value* others = object.if_contains("additionalProperties");
  const json::value free = others == nullptr ? json::value(true) : *others;
  json::object* properties = object.emplace("properties", json::object()).first->value().if_object();
  if (properties == nullptr) return;
  for (const json::value& name : names)
    if (name.is_string()) properties->emplace(name.get_string(), free);
}

void spell(json::value& schema) {
  json::object* object = schema.if_object();
  if (object == nullptr) return;
  if (!object->contains("type") && first_of(*object, kAlone) == nullptr)
    for (const TypeKeywords& known : kTypes)
      if (!object->contains("type") && first_of(*object, known.keywords) != nullptr) (*object)["type"] = known.type;
  json::value* values = object->if_contains("enum");
  if (const json::value* type = object->if_contains("type");
      type != nullptr && values != nullptr && values->is_array()) {
    json::array kept;
    for (const json::value& value : values->get_array())
      if (has_type(value, *type)) kept.push_back(value);
    *values = std::move(kept);
  }
  name_required(*object);
  spell_text(*object);
  visit_inner(*object, spell);
}

// What stands beside a keyword that is taken alone, and is no mere description or said by it already.
std::string not_kept_beside(const json::object& object) {
  const auto alone =
      std::find_if(std::begin(kAlone), std::end(kAlone), [&](std::string_view key) { return object.contains(key); });
  if (alone == std::end(kAlone)) return "";
  const json::value* type = object.if_contains("type");
  const auto fits = [&](const json::value& value) { return has_type(value, *type); };
  const auto has_same_type = [&](const json::value& option) {
    const json::value* own = option.is_object() ? option.get_object().if_contains("type") : nullptr;
    return own != nullptr && *own == *type;
  };
  const json::array* list = object.at(*alone).if_array();
  const bool type_is_said = type == nullptr || (*alone == "const" && fits(object.at("const"))) ||
                            (*alone == "enum" && list != nullptr && std::all_of(list->begin(), list->end(), fits)) ||
                            ((*alone == "anyOf" || *alone == "oneOf") && list != nullptr &&
                             std::all_of(list->begin(), list->end(), has_same_type));
  if (!type_is_said) return fmt::format("type beside {} is not supported", *alone);
  for (const auto& member : object) {
    const std::string_view key = member.key();
    const bool counts = (contains(kAlone, key) && key != *alone) ||
                        std::any_of(std::begin(kTypes), std::end(kTypes),
                                    [&](const TypeKeywords& t) { return contains(t.keywords, key); });
    if (counts) return fmt::format("{} beside {} is not supported", key, *alone);
  }
  return "";
}

// "a**", which readers of patterns refuse. "a*?" is none.
bool repeats_a_repeat(std::string_view pattern) {
  bool in_class = false, repeated = false;
  for (size_t i = 0; i < pattern.size(); ++i) {
    const char c = pattern[i];
    const bool repeats = !in_class && (c == '*' || c == '+' || c == '{');
    if (repeats && repeated) return true;
    if (c == '\\') ++i;
    if (repeats && c == '{') i = std::min(pattern.find('}', i), pattern.size());
    if (c == '[') in_class = true;
    if (c == ']') in_class = false;
    if (c != '?') repeated = repeats;
  }
  return false;
}

struct KeptCheck {
  const json::value& root;
  std::unordered_set<const json::value*> schemas = {};
  std::vector<const json::value*> references = {};  // schemas with a $ref
  std::string wrong = {};

  void visit(const json::value& schema) {
    schemas.insert(&schema);
    if (!wrong.empty() || !schema.is_object()) return;
    const json::object& object = schema.get_object();
    for (const std::string_view keyword : kNotKept) {
      const json::value* value = object.if_contains(keyword);
      if (value != nullptr && *value != json::value(false)) wrong = fmt::format("{} is not supported", keyword);
    }
    for (const std::string_view key : {"pattern", "format"})
      if (const json::value* text = object.if_contains(key); text != nullptr && !text->is_string())
        wrong = fmt::format("{} must be a string", key);
    if (const json::value* text = object.if_contains("pattern"); text != nullptr && text->is_string())
      if (repeats_a_repeat(text->get_string())) wrong = fmt::format("the pattern {} repeats a repeat", to_json(*text));
    if (const json::value* names = object.if_contains("required"); names != nullptr && names->is_array())
      for (const json::value& name : names->get_array())
        if (!name.is_string()) wrong = "required must be a list of strings";
    for (const std::string_view key : {"type", "anyOf", "oneOf", "allOf"})
      if (const json::value* list = object.if_contains(key);
          list != nullptr && list->is_array() && list->get_array().empty())
        wrong = fmt::format("{} must not be empty", key);
    if (const json::value* all = object.if_contains("allOf");
        all != nullptr && all->is_array() && all->get_array().size() > 1)
      wrong = "allOf of more than one schema is not supported";
    if (wrong.empty()) wrong = not_kept_beside(object);
    const json::value* format = object.if_contains("format");
    if (format != nullptr && *format == "regex") wrong = "the format regex is not supported";
    if (format != nullptr && object.contains("pattern") && is_known_format(*format))
      wrong = "format beside pattern is not supported";
    if (const json::value* reference = object.if_contains("$ref"); reference != nullptr && reference->is_string())
      references.push_back(&schema);
    visit_inner(object, [this](const json::value& inner) { visit(inner); });
  }

  // Nothing: what is looked at nowhere else is no schema.
  const json::value* target(std::string_view reference) const {
    if (reference == "#") return &root;
    boost::system::error_code failed;
    const json::value* found = reference.starts_with("#/") ? root.find_pointer(reference.substr(1), failed) : nullptr;
    return found != nullptr && schemas.contains(found) ? found : nullptr;
  }

  // The one that this is the same as, if it says only that.
  const json::value* same_as(const json::value& schema) const {
    if (!schema.is_object()) return nullptr;
    const json::object& object = schema.get_object();
    if (const json::value* reference = object.if_contains("$ref"); reference != nullptr && reference->is_string())
      return target(reference->get_string());
    for (const std::string_view key : {"anyOf", "oneOf", "allOf"})
      if (const json::value* options = object.if_contains(key);
          options != nullptr && options->is_array() && options->get_array().size() == 1)
        return &options->get_array().front();
    return nullptr;
  }

  void check_references() {
    std::unordered_set<const json::value*> ended;  // that come to one which says more
    for (const json::value* reference : references) {
      const auto name = [&] { return to_json(reference->get_object().at("$ref")); };
      if (!wrong.empty()) return;
      if (same_as(*reference) == nullptr) {
        wrong = fmt::format("{} leads to no schema of it", name());
        return;
      }
      std::unordered_set<const json::value*> way;
      for (const json::value* at = reference; at != nullptr && !ended.contains(at); at = same_as(*at)) {
        if (way.insert(at).second) continue;
        wrong = fmt::format("{} leads only back to itself, so that no value has it", name());
        return;
      }
      ended.merge(way);
    }
  }
};

}  // namespace

bool is_length_pattern(std::string_view pattern) {
  const auto skip = [&](std::string_view text) {
    if (!pattern.starts_with(text)) return false;
    pattern.remove_prefix(text.size());
    return true;
  };
  const auto skip_number = [&] {
    const size_t end = std::min(pattern.find_first_not_of("0123456789"), pattern.size());
    pattern.remove_prefix(end);
    return end > 0;
  };
  const bool of_json = skip(kAnyText);
  return (of_json || (skip(kAnyXmlText) && skip("{"))) && skip_number() && skip(",") && skip_number() &&
         pattern == (of_json ? "}$" : "}");
}

std::string spelled_pattern(std::string_view pattern) {
  if (is_length_pattern(pattern)) return std::string(pattern);
  std::string text;
  bool in_class = false, behind_count = false;
  for (size_t at = 0; at < pattern.size();) {
    const char c = pattern[at];
    if (c < 0x20 || c >= 0x7f) {
      const Utf8Step step = next_utf8(pattern, at);
      text += fmt::format("\\u{{{:x}}}", static_cast<uint32_t>(step.code));
      at += step.length;
      behind_count = false;
      continue;
    }
    ++at;
    const char next = at < pattern.size() ? pattern[at] : '\0';
    if (c == '\\' && next != '\0' && (next < 0x20 || next >= 0x7f)) continue;  // of a character that needs none
    if (c == '?' && !in_class && !behind_count) {
      text += "{0,1}";
      behind_count = true;
      continue;
    }
    text += c;
    if ((c == '\\' || (c == '(' && next == '?' && !in_class)) && next != '\0') text += pattern[at++];
    behind_count = !in_class && (c == '*' || c == '+' || c == '}' || c == '(');
    if (c == '[') in_class = true;
    if (c == ']') in_class = false;
  }
  return text;
}

json::value spelled_schema(json::value schema) {
  spell(schema);
  return schema;
}

std::vector<std::string> patterns_of(const json::value& schema) {
  std::vector<std::string> patterns;
  const auto visit = [&](const json::value& one, const auto& self) -> void {
    if (!one.is_object()) return;
    const json::value* pattern = one.get_object().if_contains("pattern");
    if (pattern != nullptr && pattern->is_string() && !is_length_pattern(pattern->get_string()))
      patterns.emplace_back(pattern->get_string());
    visit_inner(one.get_object(), [&](const json::value& inner) { self(inner, self); });
  };
  visit(schema, visit);
  return patterns;
}

std::string not_kept(const json::value& schema) {
  KeptCheck check{schema};
  check.visit(schema);
  check.check_references();
  return check.wrong;
}

}  // namespace calandra
