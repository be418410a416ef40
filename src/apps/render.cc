// `calandra render`: the prompt text that a chat template gives.
#include <cstdio>
#include <ctime>

#include "apps/conversation.h"
#include "apps/jsonl.h"
#include "apps/model_folder.h"
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

json::value read_json_argument(const std::string& file) {
  return file == "-" ? parse_json(read_standard_input(), "standard input") : read_json_file(file);
}

}  // namespace

int render(const Options& options) {
  std::string source;
  json::object special_tokens;
  if (!options.template_file.empty()) {
    source = read_text_file(options.template_file);
  } else if (!options.jsonl || !options.model.model.empty()) {
    const Tokenizer tokenizer = Tokenizer::load(find_model_folder(options.model.model));
    source = tokenizer.chat_template();
    if (source.empty()) throw LoadError("the model has no chat template; give one with --template");
    special_tokens = special_token_texts(tokenizer);
  }
  const std::tm now = clock_of(options);
  if (options.jsonl) return answer_rows([&](const json::object& row) { return render_row(row, source, now); });

  if (options.messages.empty()) throw UsageError("--messages FILE is missing (or --jsonl)");
  json::value messages = read_json_argument(options.messages);
  if (const json::object* object = messages.if_object(); object != nullptr && object->contains("messages")) {
    json::value inner = object->at("messages");
    messages = std::move(inner);
  }
  json::value tools;
  if (!options.tools.empty()) tools = read_json_argument(options.tools);
  json::object kwargs;
  if (!options.kwargs.empty()) {
    json::value given = parse_json(options.kwargs, "--kwargs");
    if (!given.is_object()) throw UsageError("--kwargs must be a JSON object");
    kwargs = std::move(given.get_object());
  }
  if (!kwargs.contains("add_generation_prompt") && !kwargs.contains("continue_final_message"))
    kwargs["add_generation_prompt"] = true;
  try {
    const ChatTemplate chat_template(source, std::move(special_tokens));
    const RenderedPrompt prompt = chat_template.render(with_parsed_arguments(std::move(messages)), tools, kwargs, now);
    std::fwrite(prompt.text.data(), 1, prompt.text.size(), stdout);
  } catch (const jinja::Failure& failure) {
    throw LoadError("the chat template failed" +
                    (failure.line() > 0 ? " in line " + std::to_string(failure.line()) : std::string()) + ": " +
                    failure.what());
  }
  return 0;
}

}  // namespace calandra::apps
