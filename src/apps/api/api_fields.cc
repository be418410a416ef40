#include "apps/api/api_fields.h"

namespace calandra::apps {
namespace {

using enum FieldUse;
constexpr unsigned kGenerating = kTextBodies | kEmbeddingBody;
constexpr unsigned kShownToTemplate = kChatBody | kTokenizeBody;

constexpr std::string_view kAny = "{}";
constexpr std::string_view kText = R"({"type":"string"})";
constexpr std::string_view kNamed = R"({"type":"string","minLength":1})";
constexpr std::string_view kFlag = R"({"type":"boolean"})";
constexpr std::string_view kObject = R"({"type":"object"})";
constexpr std::string_view kCount = R"({"type":"integer","minimum":0})";
constexpr std::string_view kTokens = R"({"type":"integer","minimum":1,"maximum":2147483647})";
constexpr std::string_view kWithinTwo = R"({"type":"number","minimum":-2,"maximum":2})";
constexpr std::string_view kFewLogprobs = R"({"type":"integer","minimum":0,"maximum":20})";
constexpr std::string_view kIds = R"({"type":"array","items":{"$ref":"#TokenId"},"maxItems":262144})";
constexpr std::string_view kFewIds = R"({"type":"array","items":{"$ref":"#TokenId"},"maxItems":128})";
// Lengths are bytes.
constexpr std::string_view kStops =
    R"({"anyOf":[{"type":"string","minLength":1,"maxLength":256},)"
    R"({"type":"array","items":{"type":"string","minLength":1,"maxLength":256},"maxItems":16}]})";
constexpr std::string_view kWords =
    R"({"anyOf":[{"type":"string","minLength":1,"maxLength":256},)"
    R"({"type":"array","items":{"type":"string","minLength":1,"maxLength":256},"maxItems":1024}]})";
constexpr std::string_view kPrompts =
    R"({"anyOf":[{"type":"string"},{"type":"array","minItems":1,"items":{"$ref":"#TokenId"}},)"
    R"({"type":"array","minItems":1,"maxItems":65536,"items":{"type":"string"}},{"type":"array","minItems":1,)"
    R"("maxItems":65536,"items":{"type":"array","minItems":1,"items":{"$ref":"#TokenId"}}}]})";
constexpr std::string_view kSchema = R"({"type":["object","boolean","string"]})";

constexpr ApiField kFields[] = {
    // Of read_sampling_params.
    {"n", kTextBodies, 0, kSampling, R"({"type":"integer","minimum":1,"maximum":1024})"},
    {"temperature", kAnswerBodies, 0, kSampling, R"({"type":"number","minimum":0,"maximum":3.4e38})"},
    {"top_k", kAnswerBodies, 0, kSampling, R"({"type":"integer","minimum":-1,"maximum":2147483647})"},
    {"top_p", kAnswerBodies, 0, kSampling, R"({"type":"number","exclusiveMinimum":0,"maximum":1})"},
    {"min_p", kAnswerBodies, 0, kSampling, R"({"type":"number","minimum":0,"maximum":1})"},
    {"seed", kAnswerBodies, 0, kSampling,
     R"({"type":"integer","minimum":-9223372036854775808,"maximum":18446744073709551615})"},
    {"repetition_penalty", kAnswerBodies, 0, kSampling, R"({"type":"number","exclusiveMinimum":0,"maximum":3.4e38})"},
    {"frequency_penalty", kAnswerBodies, 0, kSampling, kWithinTwo},
    {"presence_penalty", kAnswerBodies, 0, kSampling, kWithinTwo},
    {"logit_bias", kAnswerBodies, 0, kSampling,
     R"({"type":"object","propertyNames":{"pattern":"^(0|[1-9][0-9]*)$"},"maxProperties":1024,)"
     R"("additionalProperties":{"type":"number","minimum":-100,"maximum":100}})"},
    {"allowed_token_ids", kAnswerBodies, 0, kSampling, kIds},
    {"bad_words", kAnswerBodies, 0, kSampling, kWords},
    {"bad_words_ids", kAnswerBodies, 0, kSampling,
     R"({"type":"array","items":{"type":"array","minItems":1,"items":{"$ref":"#TokenId"}}})"},
    {"max_tokens", kTextBodies | kMessageBody, kMessageBody, kSampling, kTokens},  // with echo also 0
    {"min_tokens", kAnswerBodies, 0, kSampling, kCount},
    {"stop", kTextBodies | kResponseBody, 0, kSampling, kStops},
    {"stop_token_ids", kAnswerBodies, 0, kSampling, kIds},
    {"ignore_eos", kAnswerBodies, 0, kSampling, kFlag},
    {"include_stop_str_in_output", kAnswerBodies, 0, kSampling, kFlag},
    {"logprobs", kCompletionBody, 0, kSampling, kFewLogprobs},
    {"logprobs", kChatBody, 0, kSampling, kFlag},
    {"prompt_logprobs", kTextBodies, 0, kSampling, kFewLogprobs},
    {"logprob_token_ids", kTextBodies, 0, kSampling, kFewIds},
    {"prompt_logprob_token_ids", kTextBodies, 0, kSampling, kFewIds},
    {"detokenize", kTextBodies, 0, kSampling, kFlag},
    {"skip_special_tokens", kAnswerBodies, 0, kSampling, kFlag},
    {"spaces_between_special_tokens", kAnswerBodies, 0, kSampling, kFlag},
    {"thinking_token_budget", kTextBodies | kResponseBody, 0, kSampling,
     R"({"type":"integer","minimum":0,"maximum":2147483647})"},
    {"repetition_detection", kAnswerBodies, 0, kSampling, R"({"$ref":"#RepetitionDetection"})"},

    // Of BatchReader.
    {"model", kGenerating | kFormBodies | kCountBody, kGenerating | kFormBodies | kCountBody, kOther, kText},
    {"model", kTokenizeBody | kDetokenizeBody, 0, kOther, kText},
    {"prompt", kCompletionBody, kCompletionBody, kOther, kPrompts},
    {"prompt", kTokenizeBody, 0, kOther, kPrompts},  // of one text or one list of ids
    {"input", kEmbeddingBody, kEmbeddingBody, kOther, kPrompts},
    {"messages", kChatBody, kChatBody, kOther, R"({"type":"array","minItems":1,"items":{"$ref":"#ChatMessage"}})"},
    {"messages", kTokenizeBody, 0, kOther, R"({"type":"array","minItems":1,"items":{"$ref":"#ChatMessage"}})"},
    {"echo", kCompletionBody, 0, kOther, kFlag},
    {"best_of", kTextBodies, 0, kOther, R"({"type":"integer"})"},  // n
    {"max_completion_tokens", kChatBody, 0, kOther, kTokens},
    {"top_logprobs", kChatBody, 0, kOther, kFewLogprobs},
    {"priority", kGenerating | kFormBodies, 0, kOther,
     R"({"type":"integer","minimum":-2147483648,"maximum":2147483647})"},
    {"cache_salt", kGenerating | kFormBodies, 0, kOther, kNamed},
    {"skip_reading_prefix_cache", kGenerating | kFormBodies, 0, kOther, kFlag},
    {"request_id", kGenerating, 0, kOther, kText},
    {"return_token_ids", kTextBodies, 0, kOther, kFlag},
    {"return_tokens_as_token_ids", kTextBodies, 0, kOther, kFlag},
    {"add_special_tokens", kCompletionBody | kEmbeddingBody | kTokenizeBody, 0, kOther, kFlag},
    {"truncate_prompt_tokens", kGenerating, 0, kOther, R"({"type":"integer","minimum":-1,"not":{"const":0}})"},
    {"tools", kShownToTemplate, 0, kOther, R"({"type":"array","items":{"$ref":"#ChatTool"}})"},
    {"tool_choice", kShownToTemplate, 0, kOther, R"({"$ref":"#ChatToolChoice"})"},
    {"parallel_tool_calls", kShownToTemplate | kResponseBody, 0, kOther, kFlag},
    {"chat_template", kShownToTemplate | kFormBodies, 0, kOther, R"({"type":"string","maxLength":262144})"},
    {"chat_template_kwargs", kShownToTemplate | kFormBodies, 0, kOther, kObject},
    {"reasoning_effort", kShownToTemplate, 0, kOther, kAny},  // the template's own affair
    {"documents", kShownToTemplate, 0, kOther, kAny},
    {"mm_processor_kwargs", kShownToTemplate | kFormBodies, 0, kOther, kObject},
    {"add_generation_prompt", kShownToTemplate, 0, kOther, kFlag},
    {"continue_final_message", kShownToTemplate, 0, kOther, kFlag},
    {"include_reasoning", kChatBody, 0, kOther, kFlag},
    {"encoding_format", kEmbeddingBody, 0, kOther, R"({"type":"string","enum":["float","base64"]})"},
    {"dimensions", kEmbeddingBody, 0, kOther, R"({"type":"integer","minimum":1})"},
    {"normalize", kEmbeddingBody, 0, kOther, kFlag},
    {"response_format", kTextBodies, 0, kForm, R"({"$ref":"#ResponseFormat"})"},
    {"structured_outputs", kTextBodies, 0, kForm, R"({"$ref":"#StructuredOutputs"})"},
    {"guided_json", kTextBodies, 0, kForm, kSchema},
    {"guided_regex", kTextBodies, 0, kForm, kNamed},
    {"guided_choice", kTextBodies, 0, kForm,
     R"({"type":"array","minItems":1,"maxItems":10000,"items":{"type":"string","minLength":1}})"},
    {"guided_grammar", kTextBodies, 0, kForm, kNamed},
    {"stream", kAnswerBodies, 0, kOther, kFlag},
    {"stream_options", kTextBodies, 0, kOther, R"({"$ref":"#StreamOptions"})"},

    // Of /tokenize and /detokenize.
    {"content", kTokenizeBody, 0, kOther, kText},  // llama.cpp's form, with add_special
    {"add_special", kTokenizeBody, 0, kOther, kFlag},
    {"return_token_strs", kTokenizeBody, 0, kOther, kFlag},
    {"tokens", kDetokenizeBody, kDetokenizeBody, kOther, R"({"type":"array","items":{"$ref":"#TokenId"}})"},

    // Of responses_request.
    {"input", kResponseBody, kResponseBody, kOther,
     R"({"anyOf":[{"type":"string"},{"type":"array","items":{"$ref":"#ResponseItem"}}]})"},
    {"instructions", kResponseBody, 0, kOther, kText},
    {"tools", kResponseBody, 0, kOther, R"({"type":"array","items":{"$ref":"#ResponseTool"}})"},
    {"tool_choice", kResponseBody, 0, kOther, R"({"$ref":"#ResponseToolChoice"})"},
    {"text", kResponseBody, 0, kForm, R"({"$ref":"#ResponseText"})"},
    {"reasoning", kResponseBody, 0, kOther, R"({"$ref":"#ResponseReasoning"})"},
    {"max_output_tokens", kResponseBody, 0, kOther, kTokens},
    {"include", kResponseBody, 0, kOther, R"({"type":"array"})"},
    {"max_tool_calls", kResponseBody, 0, kOther, R"({"type":"integer"})"},  // of tools that the server would call
    {"truncation", kResponseBody, 0, kOther, R"({"type":"string","enum":["auto","disabled"]})"},
    {"background", kResponseBody, 0, kOther, kFlag},
    {"store", kResponseBody, 0, kOther, kFlag},
    {"previous_response_id", kResponseBody, 0, kOther, kText},
    {"metadata", kResponseBody, 0, kOther, kObject},
    {"user", kResponseBody, 0, kOther, kText},  // said again, as the next two
    {"prompt_cache_key", kResponseBody, 0, kOther, kText},
    {"safety_identifier", kResponseBody, 0, kOther, kText},

    // Of messages_request.
    {"messages", kMessageBody | kCountBody, kMessageBody | kCountBody, kOther,
     R"({"type":"array","minItems":1,"items":{"$ref":"#Message"}})"},
    {"system", kMessageBody | kCountBody, 0, kOther,
     R"({"anyOf":[{"type":"string"},{"type":"array","items":{"$ref":"#TextBlock"}}]})"},
    {"tools", kMessageBody | kCountBody, 0, kOther, R"({"type":"array","items":{"$ref":"#MessageTool"}})"},
    {"tool_choice", kMessageBody | kCountBody, 0, kOther, R"({"$ref":"#MessageToolChoice"})"},
    {"stop_sequences", kMessageBody, 0, kOther, kStops},
    {"thinking", kMessageBody | kCountBody, 0, kOther, R"({"$ref":"#MessageThinking"})"},
    {"output_config", kMessageBody | kCountBody, 0, kForm, R"({"$ref":"#MessageOutput"})"},
    {"context_management", kMessageBody | kCountBody, 0, kOther, kObject},

    // That mean nothing here.
    {"user", kGenerating, 0, kOther, kAny},
    {"store", kTextBodies, 0, kOther, kAny},
    {"metadata", kTextBodies | kMessageBody, 0, kOther, kAny},
    {"service_tier", kTextBodies | kFormBodies, 0, kOther, kAny},
    {"prompt_cache_key", kTextBodies, 0, kOther, kAny},
    {"prompt_cache_retention", kTextBodies | kResponseBody, 0, kOther, kAny},
    {"safety_identifier", kTextBodies, 0, kOther, kAny},
    {"flat_logprobs", kTextBodies, 0, kOther, kAny},
    {"output_kind", kTextBodies, 0, kOther, kAny},
    {"stream_interval", kTextBodies, 0, kOther, kAny},
    {"length_penalty", kTextBodies, 0, kOther, kAny},
    {"early_stopping", kTextBodies, 0, kOther, kAny},
    {"verbosity", kChatBody, 0, kOther, kAny},  // templates have no word for it
    {"prediction", kChatBody, 0, kOther, kAny},
    {"modalities", kChatBody, 0, kOther, R"({"type":"array","items":{"const":"text"}})"},
};

}  // namespace

std::span<const ApiField> api_fields() { return kFields; }

// Only lists of token ids are long: a prompt of the longest context that a model has and all other fields, or many
// short ones. A template is shown the others, in some three hundred bytes each.
size_t most_values(Bodies body) {
  constexpr unsigned kWithIds = kCompletionBody | kEmbeddingBody | kDetokenizeBody;
  return (body & kWithIds) != 0 ? (size_t{1} << 20) + 4096 : size_t{512} << 10;
}

}  // namespace calandra::apps
