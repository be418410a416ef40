// The fields of requests' bodies: who takes them, and their JSON schemas, for the readers and for /openapi.json.
#pragma once

#include <cstddef>
#include <span>
#include <string_view>

namespace calandra::apps {

// Bodies that may have a field, as bits.
enum Bodies : unsigned {
  kNoBody = 0,
  kCompletionBody = 1,
  kChatBody = 2,
  kEmbeddingBody = 4,
  kTokenizeBody = 8,
  kDetokenizeBody = 16,
  kResponseBody = 32,
  kMessageBody = 64,
  kCountBody = 128,
  kTextBodies = kCompletionBody | kChatBody,
  kFormBodies = kResponseBody | kMessageBody,
  kAnswerBodies = kTextBodies | kFormBodies,
};

enum class FieldUse {
  kOther,
  kSampling,  // read_sampling_params reads it
  kForm,      // says a form that the answer must have
};

struct ApiField {
  std::string_view name;
  unsigned bodies;
  unsigned required_by;  // of those
  FieldUse use;
  // JSON; null is allowed beside it. {"$ref": "#Name"} is #/components/schemas/Name.
  std::string_view schema;
};

std::span<const ApiField> api_fields();

// How many values a body may have, for parse_json.
size_t most_values(Bodies body);

}  // namespace calandra::apps
