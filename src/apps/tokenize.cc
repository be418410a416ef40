// `calandra tokenize`: text to ids and pieces, and back.
#include <fmt/format.h>

#include "apps/input_text.h"
#include "apps/jsonl.h"
#include "apps/loaded_model.h"
#include "apps/output.h"
#include "apps/verbs.h"
#include "base/error.h"
#include "text/tokenize_rows.h"

namespace calandra::apps {

int tokenize(const Options& options) {
  const Tokenizer tokenizer = load_tokenizer(options.model);
  if (options.jsonl) return answer_rows([&](const json::object& row) { return tokenize_row(tokenizer, row); });

  const std::string text = options.text.empty() ? read_text("-") : options.text;
  if (options.decode) {
    const std::vector<int32_t> ids = parse_ids(text, "TEXT");
    for (const int32_t id : ids)
      if (tokenizer.id_to_token(id).empty())
        throw LoadError(
            fmt::format("{} is outside the vocabulary: the tokenizer's ids end at {}", id, tokenizer.size() - 1));
    const std::string decoded = tokenizer.decode(ids, options.no_special);
    if (options.json)
      print_json(json::object{{"text", decoded}});
    else
      put("{}\n", decoded);
    return 0;
  }
  const std::vector<int32_t> ids = tokenizer.encode(text, {.parse_special = !options.no_special});
  if (options.json) {
    json::array pieces;
    for (const int32_t id : ids) pieces.push_back(json::string(tokenizer.id_to_token(id)));
    print_json(json::object{{"ids", json::array(ids.begin(), ids.end())}, {"pieces", std::move(pieces)}});
    return 0;
  }
  for (const int32_t id : ids) put("{:>8}  {}\n", id, to_json(json::string(tokenizer.id_to_token(id))));
  return 0;
}

}  // namespace calandra::apps
