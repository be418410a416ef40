// What generate and chat share: sampling parameters from flags and generation_config.json, prompts from messages.
#pragma once

#include "apps/loaded_model.h"
#include "engine/engine_core.h"
#include "text/chat_template.h"

namespace calandra::apps {

// The texts of the tokenizer's special tokens for the template: {"bos_token": "<s>", …}.
json::object special_token_texts(const Tokenizer& tokenizer);

// generation_config.json (with do_sample false: greedy), then the flags. Throws LoadError: a wrong value in the file,
// which it names, or a token id that the model does not have.
SamplingParams sampling_params(const Options& options, const LoadedModel& loaded);

// Throws UsageError for sampling flags that are wrong for every model.
void check_sampling_flags(const Options& options);

struct EncodedChat {
  std::vector<int32_t> ids;
  std::vector<int64_t> message_ends;  // token indices, ascending: Request::checkpoint_hints
  bool in_reasoning = false;          // the answer begins inside of a think block
};

// Renders and encodes conversations, with the model's own template unless it is given another.
class Conversation {
 public:
  // Throws LoadError when the model has no tokenizer or no chat template.
  Conversation(const LoadedModel& loaded, const Options& options);

  void set_thinking(bool on) { kwargs_["enable_thinking"] = on; }
  // The messages with the generation prompt. Throws LoadError when the template refuses them.
  EncodedChat encode(const json::array& messages) const { return encode(messages, nullptr, {}); }
  // `variables` of the template win over those of the flags. Of a chat of more than `most` ids only the first are read.
  // `other`: a template instead of the model's; empty: none. What is wrong with it is a LoadError, too.
  EncodedChat encode(const json::value& messages, const json::value& tools, const json::object& variables,
                     size_t most = SIZE_MAX, std::string_view other = {}) const;

 private:
  const Tokenizer& tokenizer_;
  ChatTemplate template_;
  json::object kwargs_;
};

}  // namespace calandra::apps
