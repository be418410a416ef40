#include "text/tokenizer_json.h"

#include <algorithm>
#include <optional>

#include "base/error.h"
#include "base/log.h"
#include "text/json_fields.h"

namespace calandra {
namespace {

constexpr size_t kMaxAddedToken = 1024;  // bytes

// tokenizers: ByteLevel's own pattern, from GPT-2.
constexpr std::string_view kByteLevelPattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

void require_absent(const JsonField& object, std::string_view key) {
  if (object.has(key)) object[key].refuse("only null is supported");
}

bool read_normalizer(const JsonField& field) {
  if (field.is_null()) return false;
  const std::string_view type = field.at("type").string();
  if (type == "NFC") {
    field.only_keys({"type"});
    return true;
  }
  if (type == "Sequence") {
    field.only_keys({"type", "normalizers"});
    const JsonField list = field.at("normalizers");
    bool nfc = false;  // applied twice it is the same
    for (size_t i = 0; i < list.array().size(); ++i) nfc = read_normalizer(list.item(i)) || nfc;
    return nfc;
  }
  field["type"].expected("\"NFC\" or \"Sequence\"");
}

SplitStep read_split(const JsonField& field) {
  static constexpr std::pair<std::string_view, SplitBehavior> kBehaviors[] = {
      {"Removed", SplitBehavior::kRemoved},
      {"Isolated", SplitBehavior::kIsolated},
      {"MergedWithPrevious", SplitBehavior::kMergedWithPrevious},
      {"MergedWithNext", SplitBehavior::kMergedWithNext},
      {"Contiguous", SplitBehavior::kContiguous}};
  field.only_keys({"type", "pattern", "behavior", "invert"});
  const JsonField pattern = field.at("pattern");
  pattern.only_keys({"Regex", "String"});
  if (pattern.object().size() != 1) pattern.refuse("expected one of \"Regex\" and \"String\"");
  const bool regex = pattern.has("Regex");
  const JsonField text = pattern[regex ? "Regex" : "String"];
  const JsonField behavior = field.at("behavior");
  const auto* known = std::find_if(std::begin(kBehaviors), std::end(kBehaviors),
                                   [&](const auto& entry) { return entry.first == behavior.string(); });
  if (known == std::end(kBehaviors)) behavior.expected("a split behavior");
  return {
      .pattern = regex ? Pattern::regex(text.string(), text.where()) : Pattern::literal(text.string(), text.where()),
      .behavior = known->second,
      .invert = field.flag("invert", false)};
}

struct PreTokenizerSteps {
  std::vector<SplitStep> steps;
  bool add_prefix_space_at_end = false;
  bool byte_level = false;
  bool add_prefix_space = false;
};

void read_pretokenizer(const JsonField& field, PreTokenizerSteps& out) {
  if (field.is_null()) return;
  if (out.byte_level) field.refuse("ByteLevel must be the last pre-tokenizer");
  const std::string_view type = field.at("type").string();
  if (type == "Sequence") {
    field.only_keys({"type", "pretokenizers"});
    const JsonField list = field.at("pretokenizers");
    for (size_t i = 0; i < list.array().size(); ++i) read_pretokenizer(list.item(i), out);
  } else if (type == "Split") {
    out.steps.push_back(read_split(field));
  } else if (type == "ByteLevel") {
    field.only_keys({"type", "add_prefix_space", "trim_offsets", "use_regex"});
    out.byte_level = true;
    const bool prefix_space = field.at("add_prefix_space").boolean();
    out.add_prefix_space = prefix_space;
    if (field.flag("use_regex", true)) {
      out.steps.push_back(
          {.pattern = Pattern::regex(kByteLevelPattern, field.where()), .add_prefix_space = prefix_space});
    } else {
      out.add_prefix_space_at_end = prefix_space;
    }
  } else {
    field["type"].expected("\"Split\", \"ByteLevel\" or \"Sequence\"");
  }
}

std::vector<BpeMerge> read_merges(const JsonField& field, const TokenIds& vocabulary) {
  const json::array& list = field.array();
  std::vector<BpeMerge> merges;
  merges.reserve(list.size());
  for (size_t i = 0; i < list.size(); ++i) {
    std::string_view left, right;
    bool well_formed = false;
    if (const json::string* text = list[i].if_string()) {  // "a b"
      const std::string_view pair = *text;
      const size_t space = pair.find(' ');
      well_formed = space != std::string_view::npos && pair.find(' ', space + 1) == std::string_view::npos;
      left = pair.substr(0, space);
      if (well_formed) right = pair.substr(space + 1);
    } else if (const json::array* pair = list[i].if_array()) {  // ["a", "b"]
      well_formed = pair->size() == 2 && (*pair)[0].is_string() && (*pair)[1].is_string();
      if (well_formed) {
        left = (*pair)[0].get_string();
        right = (*pair)[1].get_string();
      }
    }
    if (!well_formed) field.item(i).expected("\"a b\" or [\"a\", \"b\"]");
    const auto token = [&](std::string_view text) {
      const auto found = vocabulary.find(text);
      if (found == vocabulary.end())
        field.item(i).refuse("the token \"" + std::string(text) + "\" is not in the vocabulary");
      return found->second;
    };
    merges.push_back({token(left), token(right), token(std::string(left) + std::string(right))});
  }
  return merges;
}

std::pair<TokenIds, Bpe> read_model(const JsonField& field) {
  field.only_keys({"type", "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk",
                   "byte_fallback", "ignore_merges", "vocab", "merges"});
  if (field.has("type") && field["type"].string() != "BPE") field["type"].expected("\"BPE\"");
  require_absent(field, "dropout");
  for (const std::string_view key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    if (field.has(key) && !field[key].string().empty()) field[key].expected("null or \"\"");
  }
  if (field.flag("byte_fallback", false)) field["byte_fallback"].expected("false");

  const JsonField vocab = field.at("vocab");
  TokenIds vocabulary;
  vocabulary.reserve(vocab.object().size());
  std::vector<bool> used;
  for (const auto& member : vocab.object()) {
    const json::value& id = member.value();
    if (!id.is_int64() || id.get_int64() < 0 || id.get_int64() > kMaxTokenId)
      vocab[member.key()].expected("an id from 0 to " + std::to_string(kMaxTokenId));
    const auto index = static_cast<size_t>(id.get_int64());
    if (index >= used.size()) used.resize(std::max(index + 1, used.size() * 2));
    if (used[index]) vocab[member.key()].refuse("the id " + std::to_string(index) + " is used twice");
    used[index] = true;
    vocabulary.emplace(member.key(), static_cast<int32_t>(index));
  }

  std::array<int32_t, 256> byte_ids;
  int missing = 0;
  for (int byte = 0; byte < 256; ++byte) {
    const auto found = vocabulary.find(to_byte_spelling(std::string(1, static_cast<char>(byte))));
    byte_ids[byte] = found == vocabulary.end() ? -1 : found->second;
    missing += found == vocabulary.end();
  }
  if (missing > 0) {
    if (field.has("unk_token"))
      field["unk_token"].refuse("an unknown token is supported only if all bytes have tokens");
    log_warning("{}: {} bytes have no token; text with them loses them, as in Hugging Face tokenizers", vocab.where(),
                missing);
  }
  const bool ignore_merges = field.flag("ignore_merges", false);
  std::vector<BpeMerge> merges = read_merges(field.at("merges"), vocabulary);
  TokenIds whole_words;
  if (ignore_merges) {
    for (const auto& [spelling, id] : vocabulary) {
      const std::string bytes = from_byte_spelling(spelling);
      if (to_byte_spelling(bytes) == spelling) whole_words.emplace(bytes, id);
    }
  }
  return {std::move(vocabulary), Bpe(byte_ids, merges, std::move(whole_words))};
}

std::vector<AddedToken> read_added_tokens(const JsonField& list, const TokenIds& vocabulary) {
  std::vector<AddedToken> tokens;
  if (list.is_null()) return tokens;
  for (size_t i = 0; i < list.array().size(); ++i) {
    const JsonField field = list.item(i);
    field.only_keys({"id", "content", "single_word", "lstrip", "rstrip", "normalized", "special"});
    AddedToken token;
    token.id = static_cast<int32_t>(field.at("id").integer(0, kMaxTokenId));
    token.content = field.at("content").string();
    token.special = field.at("special").boolean();
    token.single_word = field.at("single_word").boolean();
    token.lstrip = field.at("lstrip").boolean();
    token.rstrip = field.at("rstrip").boolean();
    token.normalized = field.at("normalized").boolean();
    tokens.push_back(std::move(token));
  }
  check_added_tokens(list, tokens, vocabulary);
  return tokens;
}

bool read_decoder(const JsonField& field) {
  if (field.is_null()) return false;
  const std::string_view type = field.at("type").string();
  if (type == "Sequence") {
    field.only_keys({"type", "decoders"});
    const JsonField list = field.at("decoders");
    return list.array().size() == 1 && read_decoder(list.item(0));
  }
  if (type != "ByteLevel") return false;
  field.only_keys({"type", "add_prefix_space", "trim_offsets", "use_regex"});
  return true;
}

// TemplateProcessing: ids in front of the text and behind it.
void read_template(const JsonField& field, TokenizerParts& parts) {
  field.only_keys({"type", "single", "pair", "special_tokens"});
  const JsonField single = field.at("single");
  bool behind = false;
  for (size_t i = 0; i < single.array().size(); ++i) {
    const JsonField piece = single.item(i);
    piece.only_keys({"SpecialToken", "Sequence"});
    if (piece.has("Sequence")) {
      if (piece["Sequence"].at("id").string() != "A" || behind) piece.expected("the sequence A once");
      behind = true;
      continue;
    }
    const std::string_view name = piece.at("SpecialToken").at("id").string();
    const JsonField ids = field.at("special_tokens").at(name).at("ids");
    std::vector<int32_t>& side = behind ? parts.suffix : parts.prefix;
    for (size_t k = 0; k < ids.array().size(); ++k) {
      const auto id = static_cast<int32_t>(ids.item(k).integer(0, kMaxTokenId));
      const auto in_vocabulary = [id](const auto& entry) { return entry.second == id; };
      if (std::none_of(parts.vocabulary.begin(), parts.vocabulary.end(), in_vocabulary) &&
          std::none_of(parts.added.begin(), parts.added.end(), [id](const AddedToken& t) { return t.id == id; }))
        ids.item(k).refuse("there is no such token");
      side.push_back(id);
    }
  }
  if (!behind) single.refuse("the sequence A is missing");
}

void read_post_processor(const JsonField& field, TokenizerParts& parts) {
  if (field.is_null()) return;
  const std::string_view type = field.at("type").string();
  if (type == "ByteLevel") {  // changes offsets only
    field.only_keys({"type", "add_prefix_space", "trim_offsets", "use_regex"});
  } else if (type == "TemplateProcessing") {
    if (!parts.prefix.empty() || !parts.suffix.empty()) field.refuse("a second template is not supported");
    read_template(field, parts);
  } else if (type == "Sequence") {
    field.only_keys({"type", "processors"});
    const JsonField list = field.at("processors");
    for (size_t i = 0; i < list.array().size(); ++i) read_post_processor(list.item(i), parts);
  } else {
    field["type"].expected("\"ByteLevel\", \"TemplateProcessing\" or \"Sequence\"");
  }
}

}  // namespace

void check_added_tokens(const JsonField& list, const std::vector<AddedToken>& tokens, const TokenIds& vocabulary) {
  boost::unordered_flat_map<std::string_view, int32_t> ids;
  boost::unordered_flat_map<int32_t, std::string_view> contents;
  for (const auto& [spelling, id] : vocabulary) contents.emplace(id, spelling);
  auto next = static_cast<int32_t>(vocabulary.size());
  for (const AddedToken& token : tokens) {
    const std::string name = "the added token \"" + token.content + "\" (" + std::to_string(token.id) + ") ";
    if (token.content.empty() || token.content.size() > kMaxAddedToken)
      list.refuse(name + "must have 1 to " + std::to_string(kMaxAddedToken) + " bytes");
    if (!ids.emplace(token.content, token.id).second) list.refuse(name + "stands there twice");
    const auto known = vocabulary.find(token.content);
    if (known != vocabulary.end() && known->second != token.id)
      list.refuse(name + "has the id " + std::to_string(known->second) + " in the vocabulary");
    // tokenizers numbers new tokens itself, whatever the file says.
    if (known == vocabulary.end() && token.id != next)
      list.refuse(name + "is out of sequence; expected the id " + std::to_string(next));
    next = std::max(next, token.id + 1);
    const auto [other, added] = contents.emplace(token.id, token.content);
    if (!added && other->second != token.content)
      list.refuse(name + "has the id of the token \"" + std::string(other->second) + "\"");
  }
}

TokenizerParts read_tokenizer_json(const json::value& value, const std::string& where) {
  const JsonField file(value, where);
  file.only_keys({"version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer", "post_processor",
                  "decoder", "model"});
  if (file.has("version") && file["version"].string() != "1.0") file["version"].expected("\"1.0\"");
  require_absent(file, "truncation");
  require_absent(file, "padding");
  PreTokenizerSteps steps;
  read_pretokenizer(file["pre_tokenizer"], steps);
  if (!steps.byte_level)
    file["pre_tokenizer"].refuse("only byte-level tokenizers are supported; there is no ByteLevel");
  if (!read_decoder(file["decoder"])) file["decoder"].refuse("only the decoder ByteLevel is supported");
  auto [vocabulary, bpe] = read_model(file.at("model"));
  std::vector<AddedToken> added = read_added_tokens(file["added_tokens"], vocabulary);
  TokenizerParts parts{.vocabulary = std::move(vocabulary),
                       .bpe = std::move(bpe),
                       .added = std::move(added),
                       .nfc = read_normalizer(file["normalizer"]),
                       .add_prefix_space = steps.add_prefix_space,
                       .pretokenizer = PreTokenizer(std::move(steps.steps), steps.add_prefix_space_at_end),
                       .prefix = {},
                       .suffix = {}};
  read_post_processor(file["post_processor"], parts);
  return parts;
}

std::pair<TokenizerParts, TokenizerRoles> read_tokenizer_texts(std::string_view tokenizer_json,
                                                               std::string_view tokenizer_config) {
  TokenizerParts parts = read_tokenizer_json(parse_json(tokenizer_json, "tokenizer.json"), "tokenizer.json");
  TokenizerRoles roles;
  if (!tokenizer_config.empty()) {
    const std::string name = "tokenizer_config.json";
    roles = apply_tokenizer_config(parse_json(tokenizer_config, name), name, parts);
  }
  return {std::move(parts), std::move(roles)};
}

std::pair<TokenizerParts, TokenizerRoles> read_tokenizer_folder(const std::filesystem::path& folder) {
  const std::filesystem::path file = folder / "tokenizer.json", config = folder / "tokenizer_config.json",
                              jinja = folder / "chat_template.jinja";
  TokenizerParts parts = read_tokenizer_json(read_json_file(file), file.string());
  TokenizerRoles roles;
  if (std::filesystem::exists(config)) roles = apply_tokenizer_config(read_json_file(config), config.string(), parts);
  if (std::filesystem::exists(jinja)) roles.chat_templates["default"] = read_text_file(jinja);
  return {std::move(parts), std::move(roles)};
}

}  // namespace calandra
