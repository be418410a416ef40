#include "structured/output_form.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "base/json_member.h"
#include "structured/schema_spelling.h"

namespace calandra {
namespace {

constexpr size_t kMostBytes = size_t{1} << 20;              // of a schema or a tag
constexpr size_t kMostExpressionBytes = size_t{256} << 10;  // of an expression or a grammar
constexpr int kDeepest = 64;
constexpr int64_t kMostValues = 100'000;  // of a schema: JSON values in all
constexpr int64_t kMostChoices = 10'000;  // of an enum
constexpr int64_t kMostRepeats = 10'000;  // minItems, maxItems, {m,n}
constexpr int64_t kMostBrackets = 2'000;  // of an expression or grammar
// What compiling takes grows with their square, and with this sum: at either limit about half a second.
constexpr int64_t kMostProperties = 1'000;       // of one object
constexpr int64_t kMostCounted = 1'000;          // of one object whose properties are counted: their number times that
constexpr int64_t kMostPatternRepeats = 20'000;  // of all patterns of a schema
constexpr int64_t kMostRanges = 1'000;           // numbers of a schema that have bounds: each is an expression
constexpr int64_t kMostRules = 1'000;            // of a grammar

constexpr std::string_view kBlanks = "max_whitespace_cnt";  // of JSON in a structural tag

constexpr std::string_view kCounts[] = {"minItems",    "maxItems",      "minContains",
                                        "maxContains", "minProperties", "maxProperties"};

int64_t rules_of(std::string_view grammar) {
  constexpr std::string_view kIs = "::=";
  int64_t rules = 0;
  for (size_t at = grammar.find(kIs); at != std::string_view::npos; at = grammar.find(kIs, at + kIs.size())) ++rules;
  return rules;
}

struct PatternSize {
  int64_t brackets = 0, repeated = 0;
};

// How many copies of parts {m,n} writes out: of nested repeats their product, (a{100}){100} is 10,000.
PatternSize size_of_pattern(std::string_view text, bool quotes) {
  constexpr int64_t kEnough = int64_t{1} << 40;
  PatternSize size;
  std::vector<int64_t> open;     // sizes of what stands before each bracket that is open
  int64_t before = 0, last = 0;  // of the group that is being read: all but its last part, and that
  const auto add = [&](int64_t part) {
    before = std::min(before + last, kEnough);
    last = part;
  };
  for (size_t i = 0; i < text.size(); ++i) {
    switch (text[i]) {
      case '\\':
        ++i;
        add(1);
        break;
      case '[':
      case '"':
        add(1);
        if (text[i] == '"' && !quotes) break;
        for (const char end = text[i] == '[' ? ']' : '"'; ++i < text.size() && text[i] != end;)
          if (text[i] == '\\') ++i;
        break;
      case '(':
        ++size.brackets;
        add(0);
        open.push_back(before);
        before = last = 0;
        break;
      case ')':
        last = std::min(before + last, kEnough);
        before = open.empty() ? 0 : open.back();
        if (!open.empty()) open.pop_back();
        break;
      case '{': {
        int64_t most = 0, number = 0;
        for (++i; i < text.size() && text[i] != '}'; ++i) {
          number = text[i] >= '0' && text[i] <= '9' ? std::min(number * 10 + text[i] - '0', kMostRepeats + 1) : 0;
          most = std::max(most, number);
        }
        last = std::min(last * std::max<int64_t>(most, 1), kEnough);
        if (most > 1) size.repeated = std::min(size.repeated + last, kEnough);
        break;
      }
      default:
        add(1);
    }
  }
  return size;
}

struct SchemaCount {
  int64_t values = 0, pattern_repeats = 0, ranges = 0;
  std::string wrong;

  void visit(const json::value& value, int depth) {
    if (!wrong.empty()) return;
    if (depth > kDeepest) wrong = fmt::format("it is nested deeper than {}", kDeepest);
    if (++values > kMostValues) wrong = fmt::format("it has more than {} values", kMostValues);
    if (value.is_array())
      for (const json::value& item : value.get_array()) visit(item, depth + 1);
    if (!value.is_object()) return;
    check_counted(value.get_object());
    for (const std::string_view bound : {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}) {
      const json::value* number = value.get_object().if_contains(bound);
      if (number == nullptr || !number->is_number()) continue;
      if (++ranges > kMostRanges) wrong = fmt::format("more than {} of its numbers have bounds", kMostRanges);
      break;
    }
    for (const auto& [key, member] : value.get_object()) {
      const bool is_count =
          std::find(std::begin(kCounts), std::end(kCounts), std::string_view(key)) != std::end(kCounts);
      if (is_count && member.is_number() && !(member.to_number<double>() <= kMostRepeats))
        wrong = fmt::format("{} is above {}", std::string_view(key), kMostRepeats);
      const bool is_length = key == "minLength" || key == "maxLength";  // a pattern by now, unless it is wrong
      if (is_length && member.is_number() && member.to_number<double>() > static_cast<double>(kMostText))
        wrong = fmt::format("{} is above {}", std::string_view(key), kMostText);
      if ((is_count || is_length) && member.is_number() && member.to_number<double>() < 0)
        wrong = fmt::format("{} is below 0", std::string_view(key));
      if (key == kBlanks && member.is_number() &&
          !(member.is_int64() && member.get_int64() >= 1 && member.get_int64() <= kMostBlanks))
        wrong = fmt::format("{} is no whole number from 1 to {}", kBlanks, kMostBlanks);
      if (key == "pattern" && member.is_string() && !is_length_pattern(member.get_string()) && wrong.empty()) {
        wrong = too_much_of_pattern(member.get_string(), false, &pattern_repeats);
        if (pattern_repeats > kMostPatternRepeats)
          wrong = fmt::format("the repeats of its patterns add up to more than {}", kMostPatternRepeats);
      }
      if (key == "enum" && member.is_array() && std::ssize(member.get_array()) > kMostChoices)
        wrong = fmt::format("an enum has more than {} values", kMostChoices);
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

  // Of an expression, or of a grammar, whose texts are in quotes.
  static std::string too_much_of_pattern(std::string_view text, bool quotes, int64_t* sum = nullptr) {
    const PatternSize size = size_of_pattern(text, quotes);
    if (sum != nullptr) *sum += size.repeated;
    if (size.brackets > kMostBrackets) return fmt::format("it has more than {} brackets", kMostBrackets);
    if (size.repeated > kMostRepeats) return fmt::format("its repeats multiply to more than {}", kMostRepeats);
    return "";
  }
};

}  // namespace

OutputForm OutputForm::json_schema(const json::value& schema, bool strict) {
  return {.kind = Kind::kJsonSchema, .text = to_json(spelled_schema(schema)), .strict = strict};
}

namespace {

// Each format of a tag: its expression, and how many blanks its JSON may have.
void spell_formats(json::value& tag) {
  if (json::array* list = tag.if_array())
    for (json::value& item : *list) spell_formats(item);
  json::object* object = tag.if_object();
  if (object == nullptr) return;
  const json::value* type = object->if_contains("type");
  if (json::value* pattern = object->if_contains("pattern");
      type != nullptr && *type == "regex" && pattern != nullptr && pattern->is_string())
    *pattern = spelled_pattern(pattern->get_string());
  if (type != nullptr && *type == "json_schema" && find_field(*object, kBlanks) == nullptr)
    (*object)[kBlanks] = kMostBlanks;
  for (auto& member : *object)
    if (!is_schema_of_tag(member.key())) spell_formats(member.value());
}

}  // namespace

OutputForm OutputForm::structural_tag(json::value tag) {
  spell_formats(tag);
  visit_schemas_of_tag(tag, [](json::value& schema) { schema = spelled_schema(std::move(schema)); });
  return {.kind = Kind::kStructuralTag, .text = to_json(tag)};
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
  const bool is_expression = form.kind == OutputForm::Kind::kRegex || form.kind == OutputForm::Kind::kEbnf;
  const size_t most = is_expression ? kMostExpressionBytes : kMostBytes;
  if (form.text.size() > most) return fmt::format("it has more than {} bytes", most);
  switch (form.kind) {
    case OutputForm::Kind::kJsonObject:
      return "";
    case OutputForm::Kind::kRegex:
    case OutputForm::Kind::kEbnf:
      if (form.kind == OutputForm::Kind::kEbnf && rules_of(form.text) > kMostRules)
        return fmt::format("it has more than {} rules", kMostRules);
      return SchemaCount::too_much_of_pattern(form.text, form.kind == OutputForm::Kind::kEbnf);
    case OutputForm::Kind::kJsonSchema:
    case OutputForm::Kind::kStructuralTag:
      break;
  }
  boost::system::error_code failed;
  const json::value value = json::parse(form.text, failed, {}, {.max_depth = 256});
  if (failed) return "it is no JSON";
  SchemaCount count;
  count.visit(value, 0);
  const auto check = [&](const json::value& schema) {
    if (count.wrong.empty()) count.wrong = not_kept(schema);
  };
  if (form.kind == OutputForm::Kind::kJsonSchema)
    check(value);
  else
    visit_schemas_of_tag(value, check);
  return count.wrong;
}

}  // namespace calandra
