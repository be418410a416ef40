// Reading tokenizer.json (tokenizers 0.23's format, version 1.0) and tokenizer_config.json (transformers). Strict: an
// unknown key in tokenizer.json, or a value in either that would change the result and is not supported, is a LoadError
// naming file and key.
#pragma once

#include <filesystem>
#include <string_view>
#include <utility>

#include "base/json.h"
#include "text/json_fields.h"
#include "text/tokenizer.h"

namespace calandra {

// Bounds memory; the largest vocabularies in use have half as many tokens.
constexpr int32_t kMaxTokenId = (1 << 21) - 1;

std::pair<TokenizerParts, TokenizerRoles> read_tokenizer_folder(const std::filesystem::path& folder);
std::pair<TokenizerParts, TokenizerRoles> read_tokenizer_texts(std::string_view tokenizer_json,
                                                               std::string_view tokenizer_config);

// The steps of the above. `where` begins messages ("DIR/tokenizer.json").
TokenizerParts read_tokenizer_json(const json::value& file, const std::string& where);
// Throws LoadError if a content stands there twice, or an id contradicts the vocabulary or the order of the list.
void check_added_tokens(const JsonField& list, const std::vector<AddedToken>& tokens, const TokenIds& vocabulary);
// Applies tokenizer_config.json: flags of added tokens, roles, add_bos_token and add_eos_token, templates.
TokenizerRoles apply_tokenizer_config(const json::value& file, const std::string& where, TokenizerParts& parts);

}  // namespace calandra
