// What users of the engine give and get.
#pragma once

#include <array>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "engine/encoder_cache.h"
#include "engine/grammar.h"
#include "engine/logits_processor.h"
#include "engine/sampling_params.h"
#include "engine/sequence.h"

namespace calandra {

using RequestId = uint64_t;  // of one engine, in order of arrival

// A prompt that is not continued but turned into one vector: the hidden row after the final norm of its last token, or
// the mean over all its tokens (in f32, in token order).
enum class Pooling { kNone, kLast, kMean };

struct Request {
  std::vector<int32_t> prompt_token_ids;
  SamplingParams params;
  // With images or videos, ascending: what the vision tower reads, and where its rows stand.
  std::vector<PictureRows> pictures = {};
  // Or rows that were made already, which must stay until the request has ended; such a prompt is neither looked up in
  // the prefix cache nor kept.
  std::vector<ImageSpan> images = {};
  // With either: rotary positions of the whole prompt (Sequence).
  std::vector<std::array<int32_t, 3>> positions = {};
  int32_t position_delta = 0;

  // Token indices where messages of a chat end, ascending: the next turn of the conversation goes on from one of them.
  std::vector<int64_t> checkpoint_hints = {};
  std::string cache_salt = {};  // requests share checkpoints only with those of the same salt
  int32_t first_choice = 0;     // index of the first choice: prompt j of a request for several uses j * n (noise)
  int32_t priority = 0;         // lower ones first, with the priority policy
  double deadline = 0;          // seconds of the engine's clock, when it is ended; 0: none
  std::optional<double> arrival = {};  // seconds of the engine's clock, for statistics; absent: when it is added
  // Nothing that others computed is used for it; what it computes is kept.
  bool skip_reading_prefix_cache = false;
  Pooling pooling = Pooling::kNone;
  std::vector<std::shared_ptr<const LogitsProcessor>> processors = {};
  std::shared_ptr<const Grammar> grammar = {};  // each choice follows a clone of it
};

enum class FinishReason { kStop, kLength, kCancelled };
// "stop", "length", "abort"
std::string_view name_of(FinishReason reason);

// One choice of a request.
struct Answer {
  std::vector<int32_t> token_ids;  // the token that stopped it included
  std::string text;                // empty without a tokenizer
  FinishReason finish_reason = FinishReason::kLength;
  std::string stop_reason;                   // the stop string; empty otherwise
  std::optional<int32_t> stop_token;         // the stop token of the request (not EOS)
  std::vector<ops::TokenLogprobs> logprobs;  // one per token, when asked for
  // Of the prompt's tokens from the second on, when asked for; of the first choice alone.
  std::vector<ops::TokenLogprobs> prompt_logprobs;
  std::vector<float> embedding;       // of a pooling request
  std::optional<RequestError> error;  // set: it ended here, perhaps before anything was computed

  int64_t cached_tokens = 0;  // of the prompt: not computed, as an earlier request had them
  int64_t preemptions = 0;
  // Drafts verified, and accepted, by position.
  std::vector<int64_t> drafted, accepted;
};

// One token of one choice, as it happens.
struct TokenEvent {
  RequestId request;
  int32_t choice;
  int32_t token;          // -1: the choice ended without one
  std::string_view text;  // what may be shown now; may be empty
  bool finished;
  Answer& answer;  // so far; the receiver may move it away when it has finished
};
// Returns false to cancel the request, all choices of it.
using OnToken = std::function<bool(const TokenEvent&)>;

}  // namespace calandra
