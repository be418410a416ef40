// `calandra render`: the prompt text that a chat template gives.
#include <algorithm>
#include <ctime>
#include <optional>

#include "apps/conversation.h"
#include "apps/input_text.h"
#include "apps/jsonl.h"
#include "apps/model_folder.h"
#include "apps/output.h"
#include "apps/verbs.h"
#include "base/error.h"
#include "text/chat_template.h"
#include "text/render_rows.h"
#include "text/tokenizer.h"

namespace calandra::apps {
namespace {

std::tm clock_of(const Options& options) {
  if (!options.now.empty()) return parse_clock(options.now);
  const std::time_t now = std::time(nullptr);
  std::tm local{};
  localtime_r(&now, &local);
  return local;
}

struct Source {
  std::string text;
  json::object special_tokens;
};

Source source_of(const Options& options) {
  if (!options.template_file.empty()) return {read_text(options.template_file), {}};
  const std::filesystem::path folder = find_model_folder(options.model.model);
  const Tokenizer tokenizer = Tokenizer::load(folder);
  Source source{std::string(tokenizer.chat_template()), special_token_texts(tokenizer)};
  if (source.text.empty()) throw LoadError(folder.string() + " has no chat template; give one with --template");
  return source;
}

// Rows of messages take the template of --template or of the model, which is read for the first of them.
int render_rows(const Options& options, const std::tm& now) {
  std::optional<Source> source;
  if (!options.template_file.empty() || !options.model.model.empty()) source = source_of(options);
  return answer_rows([&](const json::object& row) {
    if (row.contains("template")) return render_row(row, "", now);
    const json::value* messages = row.if_contains("messages");
    if (messages != nullptr && !messages->is_array()) throw UsageError("\"messages\" of the row must be a list");
    if (!source) source = source_of(options);
    json::object whole = row;
    json::value& kwargs = whole["kwargs"];
    if (!kwargs.is_object()) kwargs = json::object();
    for (const auto& token : source->special_tokens) kwargs.get_object().insert(token);  // those of the row win
    return render_row(whole, source->text, now);
  });
}

}  // namespace

int render(const Options& options) {
  const std::tm now = clock_of(options);
  if (options.jsonl) return render_rows(options, now);

  Source source = source_of(options);
  json::value messages = read_json(options.messages);
  if (const json::object* object = messages.if_object(); object != nullptr && object->contains("messages")) {
    json::value inner = object->at("messages");
    messages = std::move(inner);
  }
  if (!messages.is_array()) throw LoadError(options.messages + " must hold a list of messages");
  json::value tools;
  if (!options.tools.empty()) {
    tools = read_json(options.tools);
    const auto is_object = [](const json::value& tool) { return tool.is_object(); };
    if (!tools.is_array() || !std::all_of(tools.get_array().begin(), tools.get_array().end(), is_object))
      throw LoadError(options.tools + " must hold a list of objects");
  }
  json::object kwargs = options.kwargs;
  if (!kwargs.contains("add_generation_prompt") && !kwargs.contains("continue_final_message"))
    kwargs["add_generation_prompt"] = true;
  try {
    const ChatTemplate chat_template(source.text, std::move(source.special_tokens));
    write_output(chat_template.render(with_parsed_arguments(std::move(messages)), tools, kwargs, now).text);
  } catch (const jinja::Failure& failure) {
    throw LoadError("the chat template failed" +
                    (failure.line() > 0 ? " in line " + std::to_string(failure.line()) : std::string()) + ": " +
                    failure.what());
  }
  return 0;
}

}  // namespace calandra::apps
