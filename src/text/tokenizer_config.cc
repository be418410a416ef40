// tokenizer_config.json. transformers: PreTrainedTokenizerBase.from_pretrained, PreTrainedTokenizerFast.
#include <algorithm>
#include <charconv>

#include "text/json_fields.h"
#include "text/tokenizer_json.h"

namespace calandra {
namespace {

// Entries of added_tokens_decoder replace the flags in tokenizer.json and may add tokens.
void merge_added_tokens(const JsonField& decoder, TokenizerParts& parts) {
  const size_t known = parts.added.size();
  for (const auto& member : decoder.object()) {
    const std::string_view key = member.key();
    const JsonField field = decoder[key];
    int32_t id = -1;
    const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), id);
    if (error != std::errc() || end != key.data() + key.size() || id < 0 || id > kMaxTokenId)
      field.refuse("the key is not an id from 0 to " + std::to_string(kMaxTokenId));
    auto token = std::find_if(parts.added.begin(), parts.added.end(), [&](const AddedToken& t) { return t.id == id; });
    if (token == parts.added.end()) token = parts.added.insert(token, {.id = id, .normalized = true});
    const std::string_view content = field.at("content").string();
    if (token->content.empty()) token->content = content;
    if (token->content != content) field["content"].expected("\"" + token->content + "\" as in tokenizer.json");
    token->special = field.flag("special", token->special);
    token->single_word = field.flag("single_word", token->single_word);
    token->lstrip = field.flag("lstrip", token->lstrip);
    token->rstrip = field.flag("rstrip", token->rstrip);
    token->normalized = field.flag("normalized", token->normalized);
  }
  std::sort(parts.added.begin() + static_cast<std::ptrdiff_t>(known), parts.added.end(),
            [](const AddedToken& a, const AddedToken& b) { return a.id < b.id; });
  check_added_tokens(decoder, parts.added, parts.vocabulary);
}

// "<s>" or {"content": "<s>", ...}
std::optional<int32_t> read_role(const JsonField& file, std::string_view key, const TokenizerParts& parts) {
  if (!file.has(key)) return std::nullopt;
  const JsonField field = file[key];
  const std::string_view content = field.is_object() ? field.at("content").string() : field.string();
  for (const AddedToken& token : parts.added) {
    if (token.content == content) return token.id;
  }
  if (const auto found = parts.vocabulary.find(content); found != parts.vocabulary.end()) return found->second;
  field.refuse("the token \"" + std::string(content) + "\" is not in the vocabulary");
}

void read_templates(const JsonField& field, TokenizerRoles& roles) {
  if (field.is_null()) return;
  if (field.is_string()) {
    roles.chat_templates["default"] = field.string();
    return;
  }
  for (size_t i = 0; i < field.array().size(); ++i) {
    const JsonField entry = field.item(i);
    roles.chat_templates[std::string(entry.at("name").string())] = entry.at("template").string();
  }
}

}  // namespace

TokenizerRoles apply_tokenizer_config(const json::value& value, const std::string& where, TokenizerParts& parts) {
  const JsonField file(value, where);
  for (const std::string_view key : {"clean_up_tokenization_spaces", "split_special_tokens"}) {
    if (file.flag(key, false)) file[key].expected("false");
  }
  if (file.flag("add_prefix_space", parts.add_prefix_space) != parts.add_prefix_space)
    file["add_prefix_space"].refuse("contradicts the pre_tokenizer of tokenizer.json");
  if (file.has("added_tokens_decoder")) merge_added_tokens(file["added_tokens_decoder"], parts);
  TokenizerRoles roles;
  roles.bos = read_role(file, "bos_token", parts);
  roles.eos = read_role(file, "eos_token", parts);
  roles.pad = read_role(file, "pad_token", parts);
  roles.unk = read_role(file, "unk_token", parts);
  const bool add_bos = file.flag("add_bos_token", false), add_eos = file.flag("add_eos_token", false);
  if (add_bos || add_eos) {  // transformers replaces the post-processor then
    if (add_bos && !roles.bos) file["add_bos_token"].refuse("there is no bos_token");
    if (add_eos && !roles.eos) file["add_eos_token"].refuse("there is no eos_token");
    parts.prefix.clear();
    parts.suffix.clear();
    if (add_bos) parts.prefix.push_back(*roles.bos);
    if (add_eos) parts.suffix.push_back(*roles.eos);
  }
  read_templates(file["chat_template"], roles);
  return roles;
}

}  // namespace calandra
