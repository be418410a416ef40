// calandra as a C++ library: a model with its engine on a thread of its own. Link the CMake target
// calandra::engine (docs/guide/library.md).
//
//   calandra::LocalEngine local("./Qwen3.5-4B", {"--max-num-seqs=8"});
//   calandra::Request request{.prompt_token_ids = local.chat_prompt("What is a lark?"), .params = local.params()};
//   auto submitted = local.engine().submit(std::move(request));
//   if (auto* stream = std::get_if<std::shared_ptr<calandra::Stream>>(&submitted))
//     while (auto event = (*stream)->next()) std::cout << event->text << std::flush;
//
// Engine (submit, drain, stats, healthy), Stream (next, cancel), Request, Answer, SamplingParams: engine/engine.h.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "engine/engine.h"
#include "text/tokenizer.h"

namespace calandra {

class LocalEngine {
 public:
  // `model`: as every verb of the program takes it, a folder, a Hugging Face name in the local cache, or
  // "demo:qwen3_5". `flags`: those of `calandra run-batch --help` about model and engine, each as "--flag=value" or
  // "--flag". Throws UsageError for wrong flags, LoadError for what is wrong with the model or does not fit into
  // memory.
  explicit LocalEngine(const std::string& model, const std::vector<std::string>& flags = {});
  ~LocalEngine();  // ends what runs
  LocalEngine(const LocalEngine&) = delete;
  LocalEngine& operator=(const LocalEngine&) = delete;

  Engine& engine();
  // Null when the model's folder has none: then prompts are token ids, and answers have no text.
  const Tokenizer* tokenizer() const;
  // What generation_config.json says; vLLM's defaults elsewhere.
  const SamplingParams& params() const;
  // A user's first message in the model's chat template, as token ids. Throws LoadError when the model has no template.
  std::vector<int32_t> chat_prompt(std::string_view message) const;

 private:
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

}  // namespace calandra
