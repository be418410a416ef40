// The output form that the body of an API request asks for.
#pragma once

#include <optional>
#include <variant>

#include "base/error.h"
#include "structured/output_form.h"

namespace calandra {

// Reads response_format (text, json_object, json_schema, structural_tag), vLLM's structured_outputs (json, regex,
// choice, grammar, json_object, structural_tag, and disable_any_whitespace beside one that is JSON) and their older
// names guided_json, guided_regex, guided_choice, guided_grammar. None of them: no form. Two at once are an error, as
// is a key of one of these objects that is not kept.
std::variant<std::optional<OutputForm>, RequestError> requested_form(const json::object& body);

}  // namespace calandra
