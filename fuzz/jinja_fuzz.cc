// Any bytes as a template, rendered against a small context under small budgets: an output or a Failure, never anything
// else.
#include "text/jinja/template.h"

#include <cstddef>
#include <cstdint>
#include <cstdlib>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  using namespace calandra;
  static const std::vector<jinja::Variable> kVariables = [] {
    const json::value context =
        parse_json(R"({"x": 5, "f": 2.5, "n": null, "s": "Hello <b> é", "l": [3, 1, 2], "d": {"b": 1, "a": "x"},
      "messages": [{"role": "user", "content": "U"}, {"role": "assistant", "content": [{"type": "text", "text": "A"}]}]})",
                   "context");
    std::vector<jinja::Variable> variables;
    for (const auto& [name, value] : context.get_object()) variables.push_back({std::string(name), value, name != "x"});
    return variables;
  }();
  jinja::Budgets budgets;
  budgets.steps = 20'000;
  budgets.output_bytes = size_t{1} << 16;
  budgets.memory_bytes = size_t{1} << 20;
  try {
    const jinja::Template compiled(std::string_view(reinterpret_cast<const char*>(bytes), size));
    const auto text = compiled.render(kVariables, std::tm{.tm_mday = 1}, budgets);
    std::string joined;
    for (const TextPiece& piece : text.pieces()) joined += piece.text;
    if (joined != text.text() || joined.size() > budgets.output_bytes) std::abort();
  } catch (const jinja::Failure&) {
    return 0;
  }
  return 0;
}
