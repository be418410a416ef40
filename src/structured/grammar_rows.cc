#include "structured/grammar_rows.h"

namespace calandra {
namespace {

constexpr int32_t kEnd = 256;  // behind the 256 bytes

GrammarCompiler& byte_compiler() {
  static GrammarCompiler compiler = [] {
    std::vector<std::string> bytes(kEnd + 1);
    for (int byte = 0; byte < kEnd; ++byte) bytes[byte] = static_cast<char>(byte);
    bytes[kEnd] = "<end>";
    return GrammarCompiler(bytes, {kEnd});
  }();
  return compiler;
}

bool allows(Grammar& grammar, int32_t token) {
  std::vector<uint32_t> words(kEnd / 32 + 1);
  grammar.mask({}, words);
  return (words[token / 32] >> (token % 32) & 1) != 0;
}

bool takes(const Grammar& grammar, std::string_view text) {
  const std::unique_ptr<Grammar> at = grammar.clone();
  for (const char c : text) {
    const int32_t token = static_cast<unsigned char>(c);
    if (!allows(*at, token)) return false;
    at->accept(token);
  }
  return allows(*at, kEnd);
}

std::string text_of(const json::object& row, const char* key) {
  const json::value& value = row.at(key);
  if (!value.is_string()) throw UsageError(std::string("\"") + key + "\" of the row must be a string");
  return std::string(value.get_string());
}

OutputForm form_of(const json::object& row) {
  if (row.contains("schema")) return OutputForm::json_schema(row.at("schema"), /*strict=*/false);
  if (row.contains("regex")) return OutputForm::regex(text_of(row, "regex"));
  if (row.contains("grammar")) return {.kind = OutputForm::Kind::kEbnf, .text = text_of(row, "grammar")};
  throw UsageError("a row needs \"schema\", \"regex\" or \"grammar\"");
}

json::array answers(const Grammar& grammar, const json::object& row, const char* key, bool wanted) {
  json::array out;
  const json::value* strings = row.if_contains(key);
  if (strings == nullptr) return out;
  if (!strings->is_array()) throw UsageError(std::string("\"") + key + "\" of the row must be a list of strings");
  for (const json::value& string : strings->get_array()) {
    if (!string.is_string()) throw UsageError(std::string("\"") + key + "\" of the row must be a list of strings");
    out.push_back(takes(grammar, string.get_string()) == wanted);
  }
  return out;
}

}  // namespace

json::object grammar_row(const json::object& row) {
  const GrammarCompiler::Compiled compiled = byte_compiler().compile(form_of(row));
  if (compiled.error) return {{"error", compiled.error->message}};
  return {{"accepted", answers(*compiled.grammar, row, "accept", true)},
          {"rejected", answers(*compiled.grammar, row, "reject", false)}};
}

}  // namespace calandra
