// `calandra tokenize`: text to ids and pieces, and back.
#include <fmt/format.h>

#include <cstdio>

#include "apps/jsonl.h"
#include "apps/loaded_model.h"
#include "apps/verbs.h"
#include "text/tokenize_rows.h"

namespace calandra::apps {

int tokenize(const Options& options) {
  const Tokenizer tokenizer = load_tokenizer(options.model);
  if (options.jsonl) return answer_rows([&](const json::object& row) { return tokenize_row(tokenizer, row); });

  std::string text = options.text;
  if (text.empty()) text = read_standard_input();
  std::vector<int32_t> ids;
  if (options.decode) {
    ids = parse_ids(text, "TEXT");
    const std::string decoded = tokenizer.decode(ids, options.no_special);
    if (options.json) {
      std::puts(to_json(json::object{{"text", decoded}}).c_str());
    } else {
      std::puts(decoded.c_str());
    }
    return 0;
  }
  ids = tokenizer.encode(text, {.parse_special = !options.no_special});
  if (options.json) {
    json::array pieces;
    for (const int32_t id : ids) pieces.push_back(json::string(tokenizer.id_to_token(id)));
    std::puts(
        to_json(json::object{{"ids", json::array(ids.begin(), ids.end())}, {"pieces", std::move(pieces)}}).c_str());
    return 0;
  }
  for (const int32_t id : ids) fmt::print("{:>8}  {}\n", id, to_json(json::string(tokenizer.id_to_token(id))));
  return 0;
}

}  // namespace calandra::apps
