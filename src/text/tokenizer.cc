#include "text/tokenizer.h"

#include "base/error.h"
#include "text/normalizer.h"
#include "text/tokenizer_json.h"
#include "text/utf8.h"

namespace calandra {
namespace {

// What an added token looks like in text and in decoded text.
std::string written(const AddedToken& token, bool normalizes) {
  return token.normalized && normalizes ? nfc(token.content) : token.content;
}

AddedTokenMatcher matcher(const TokenizerParts& parts, bool normalized) {
  std::vector<AddedToken> tokens;
  for (const bool special : {true, false}) {  // where two become equal by normalisation, the special one counts
    for (const AddedToken& token : parts.added) {
      if (token.normalized != normalized || token.special != special) continue;
      tokens.push_back(token);
      tokens.back().content = written(token, parts.nfc);
    }
  }
  return AddedTokenMatcher(std::move(tokens));
}

// Characters that compose over a border between input and other text count as input.
MarkedText normalize(const MarkedText& text) {
  MarkedText out;
  if (text.runs.size() == 1) {
    out.append(nfc(text.text), text.runs[0].is_input);
    return out;
  }
  size_t run = 0;
  for (size_t begin = 0; begin < text.text.size();) {
    const size_t end = nfc_segment_end(text.text, begin);
    while (text.runs[run].end <= begin) ++run;
    bool is_input = text.runs[run].is_input;
    for (size_t r = run; text.runs[r].end < end; ++r) is_input = is_input || text.runs[r + 1].is_input;
    out.append(nfc(std::string_view(text.text).substr(begin, end - begin)), is_input);
    begin = end;
  }
  return out;
}

}  // namespace

Tokenizer::Tokenizer(TokenizerParts parts, TokenizerRoles roles)
    : parts_(std::move(parts)),
      roles_(std::move(roles)),
      raw_matcher_(matcher(parts_, false)),
      normalized_matcher_(matcher(parts_, true)) {
  int32_t last = -1;
  for (const auto& entry : parts_.vocabulary) last = std::max(last, entry.second);
  for (const AddedToken& token : parts_.added) last = std::max(last, token.id);
  tokens_.resize(static_cast<size_t>(last + 1));
  for (const auto& [spelling, id] : parts_.vocabulary)
    tokens_[id] = {
        .spelling = spelling,
        .bytes = from_byte_spelling(spelling),
    };
  if (parts_.bpe.keeps_every_byte())
    for (const Token& token : tokens_) longest_ = std::max(longest_, token.bytes.size());
  for (const AddedToken& token : parts_.added) {
    const std::string spelling = written(token, parts_.nfc);
    tokens_[token.id] = {
        .spelling = spelling, .bytes = from_byte_spelling(spelling), .added = true, .special = token.special};
    added_ids_[token.content] = token.id;
  }
}

Tokenizer Tokenizer::load(const std::filesystem::path& folder) {
  auto [parts, roles] = read_tokenizer_folder(folder);
  return Tokenizer(std::move(parts), std::move(roles));
}

Tokenizer Tokenizer::from_json(std::string_view tokenizer_json, std::string_view tokenizer_config) {
  auto [parts, roles] = read_tokenizer_texts(tokenizer_json, tokenizer_config);
  return Tokenizer(std::move(parts), std::move(roles));
}

std::vector<int32_t> Tokenizer::encode(std::string_view text, EncodeOptions options) const {
  MarkedText marked;
  if (is_valid_utf8(text)) {
    marked.append(text, !options.parse_special);
  } else {
    marked.append(replace_invalid_utf8(text), !options.parse_special);
  }
  return encode(marked, options.add_special, options.most);
}

std::vector<int32_t> Tokenizer::encode(std::span<const TextPiece> pieces, size_t most) const {
  MarkedText joined;
  for (const TextPiece& piece : pieces) joined.append(piece.text, piece.is_input);
  if (is_valid_utf8(joined.text)) return encode(joined, false, most);
  MarkedText valid;
  auto run = joined.runs.begin();
  for (size_t at = 0; at < joined.text.size();) {
    const Utf8Step step = next_utf8(joined.text, at);
    bool is_input = run->is_input;
    for (; at + step.length > run->end; is_input = is_input || run->is_input) ++run;
    const std::string_view bytes = std::string_view(joined.text).substr(at, step.length);
    valid.append(step.valid ? bytes : "\uFFFD", is_input);
    at += step.length;
    if (at == run->end) ++run;
  }
  return encode(valid, false, most);
}

std::vector<int32_t> Tokenizer::encode(const MarkedText& text, bool add_special, size_t most) const {
  // NFC grows a text by less than three times.
  if (text.text.size() >= UINT32_MAX / 8) throw UsageError("a text of 512 MiB or more cannot be tokenized");
  std::vector<int32_t> ids;
  PreTokenizer::Words words;
  Bpe::Scratch scratch;
  if (add_special) ids = parts_.prefix;
  for (const AddedTokenMatcher::Part& part : raw_matcher_.split(text)) {
    if (ids.size() > most) return ids;
    if (part.id >= 0) {
      ids.push_back(part.id);
      continue;
    }
    if (normalized_matcher_.empty()) {
      const std::string_view span = std::string_view(text.text).substr(part.begin, part.end - part.begin);
      if (parts_.nfc) {
        encode_words(nfc(span), words, scratch, most, ids);
      } else {
        encode_words(span, words, scratch, most, ids);
      }
      continue;
    }
    MarkedText span = text.slice(part.begin, part.end);
    if (parts_.nfc) span = normalize(span);
    for (const AddedTokenMatcher::Part& inner : normalized_matcher_.split(span)) {
      if (inner.id >= 0) {
        ids.push_back(inner.id);
      } else {
        encode_words(std::string_view(span.text).substr(inner.begin, inner.end - inner.begin), words, scratch, most,
                     ids);
      }
    }
  }
  if (add_special) ids.insert(ids.end(), parts_.suffix.begin(), parts_.suffix.end());
  return ids;
}

void Tokenizer::encode_words(std::string_view text, PreTokenizer::Words& words, Bpe::Scratch& scratch, size_t most,
                             std::vector<int32_t>& ids) const {
  // A word has an id or more, and one for each longest_ bytes: of what has too many in any case little is looked at.
  const bool is_bounded = ids.size() <= most && longest_ > 0;
  parts_.pretokenizer.split(text, words, is_bounded ? most - ids.size() : SIZE_MAX);
  for (const std::string_view word : words.words) {
    if (ids.size() > most) return;
    const size_t room = most - ids.size();
    if (is_bounded && word.size() / longest_ > room) {
      parts_.bpe.encode(word.substr(0, (room + 1) * longest_), scratch, ids);
      ids.resize(most + 1);
      return;
    }
    parts_.bpe.encode(word, scratch, ids);
  }
}

std::string Tokenizer::decode(std::span<const int32_t> ids, bool skip_special) const {
  std::string bytes;
  for (const int32_t id : ids) {
    if (!skip_special || !is_special(id)) bytes += id_to_piece(id);
  }
  return replace_invalid_utf8(bytes);
}

const Tokenizer::Token* Tokenizer::find(int32_t id) const {
  return id >= 0 && id < size() ? &tokens_[static_cast<size_t>(id)] : nullptr;
}

std::string_view Tokenizer::id_to_piece(int32_t id) const {
  const Token* token = find(id);
  return token == nullptr ? std::string_view() : token->bytes;
}

std::string_view Tokenizer::id_to_token(int32_t id) const {
  const Token* token = find(id);
  return token == nullptr ? std::string_view() : token->spelling;
}

std::optional<int32_t> Tokenizer::token_to_id(std::string_view token) const {
  if (const auto found = added_ids_.find(token); found != added_ids_.end()) return found->second;
  if (const auto found = parts_.vocabulary.find(token); found != parts_.vocabulary.end()) return found->second;
  return std::nullopt;
}

bool Tokenizer::is_special(int32_t id) const {
  const Token* token = find(id);
  return token != nullptr && token->special;
}

bool Tokenizer::is_added(int32_t id) const {
  const Token* token = find(id);
  return token != nullptr && token->added;
}

std::string_view Tokenizer::chat_template(const std::string& name) const {
  const auto found = roles_.chat_templates.find(name);
  return found == roles_.chat_templates.end() ? std::string_view() : found->second;
}

}  // namespace calandra
