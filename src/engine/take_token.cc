#include "engine/take_token.h"

#include <fmt/format.h>

#include <algorithm>

#include "engine/repetition.h"

namespace calandra {
namespace {

// Why no token is left to choose from, and what to change.
std::string nothing_left(const Sequence& s) {
  if (!s.grammar)
    return "no token is left to choose from: allowed_token_ids, bad_words, logit_bias, min_tokens and "
           "thinking_token_budget exclude all";
  if (!s.grammar->fault().empty()) return fmt::format("the output form cannot be followed: {}", s.grammar->fault());
  return "no token is left to choose from: allowed_token_ids, bad_words, logit_bias, min_tokens and "
         "thinking_token_budget exclude all that the output form allows; leave them out beside a form";
}

}  // namespace

bool take_token(Choice& choice, const ops::SampledRow& sampled, std::span<const int32_t> eos_token_ids,
                std::string& text) {
  Sequence& s = choice.sequence;
  Answer& answer = choice.answer;
  if (sampled.status != ops::RowStatus::kOk) {
    if (sampled.status == ops::RowStatus::kNotFinite)
      answer.error =
          RequestError{500, "internal_error", "", "the model computed NaN or infinity; the answer ends here"};
    else
      answer.error = RequestError{400, "invalid_request_error", "", nothing_left(s)};
    s.finished = true;
    return true;
  }
  const int32_t token = sampled.token;
  s.tokens.push_back(token);
  answer.token_ids.push_back(token);
  if (s.params.logprobs) answer.logprobs.push_back(sampled.logprobs);
  if (s.grammar) s.grammar->accept(token);

  // A token that stops: an end-of-text id or one of the request's; its text is left out unless asked for.
  const auto among = [&](std::span<const int32_t> ids) {
    return std::find(ids.begin(), ids.end(), token) != ids.end();
  };
  const bool is_stop = among(s.params.stop_token_ids);
  const bool is_end = among(eos_token_ids);
  // Before min_tokens the end is sampled only where the form has nothing else.
  const bool may_stop = s.outputs() >= s.params.min_tokens || (is_end && s.grammar && s.grammar->finished());
  const bool stops = ((!s.params.ignore_eos && is_end) || is_stop) && may_stop;
  std::optional<Detokenizer>& detokenizer = choice.detokenizer;
  const size_t before = text.size();
  if (detokenizer && !(stops && !s.params.include_stop_str_in_output)) text += detokenizer->push(token);
  s.finished = true;
  if (stops) {
    answer.finish_reason = FinishReason::kStop;
    if (is_stop) answer.stop_token = token;
  } else if (detokenizer && detokenizer->stopped()) {
    answer.finish_reason = FinishReason::kStop;
    answer.stop_reason = detokenizer->stop_reason();
  } else if (s.outputs() >= s.params.min_tokens &&
             repetition_detected(s.params.repetition_detection, std::span(s.tokens).subspan(s.prompt_size))) {
    answer.finish_reason = FinishReason::kStop;
    answer.stop_reason = "repetition_detection";
  } else if (s.size() >= choice.longest) {
    answer.finish_reason = FinishReason::kLength;
  } else {
    s.finished = false;
  }
  if (s.finished && detokenizer) text += detokenizer->flush();
  if (detokenizer) answer.text += std::string_view(text).substr(before);
  return s.finished;
}

}  // namespace calandra
