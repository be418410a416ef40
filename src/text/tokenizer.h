// Tokenizer: a model folder's tokenizer.json (byte-level BPE) and tokenizer_config.json, equal to Hugging Face
// tokenizers on every string. Bytes that are not UTF-8 count as U+FFFD, one for each maximal ill-formed part.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "text/added_tokens.h"
#include "text/bpe.h"
#include "text/pretokenizer.h"
#include "text/text_piece.h"

namespace calandra {

struct EncodeOptions {
  // Recognise added tokens ("<|im_start|>", "<think>"); false: all of the text is ordinary text.
  bool parse_special = true;
  // Put in front and behind what the post-processor, or add_bos_token and add_eos_token, ask for.
  bool add_special = false;
  // Reading ends where there are more ids than this in any case: what is beyond the limit is not worth its time. How
  // many more, and which the last one is, means nothing then.
  size_t most = SIZE_MAX;
};

// What tokenizer.json says; read by read_tokenizer_json (text/tokenizer_json.h).
struct TokenizerParts {
  TokenIds vocabulary;  // the model's tokens in their spelling
  Bpe bpe;
  std::vector<AddedToken> added;
  bool nfc = false;
  bool add_prefix_space = false;  // of the pre-tokenizer
  PreTokenizer pretokenizer;
  std::vector<int32_t> prefix, suffix;  // ids of the post-processor
};

// What tokenizer_config.json and the template files say.
struct TokenizerRoles {
  std::optional<int32_t> bos, eos, pad, unk;
  std::map<std::string, std::string> chat_templates;  // by name; the usual one is "default"
};

// Const calls are safe from several threads at once.
class Tokenizer {
 public:
  // Throws LoadError naming file and key for whatever is broken or would change the result and is not supported.
  static Tokenizer load(const std::filesystem::path& folder);
  // The same from texts; an empty `tokenizer_config` is none.
  static Tokenizer from_json(std::string_view tokenizer_json, std::string_view tokenizer_config = {});

  // Throw UsageError when the text has 512 MiB or more, or makes the split pattern take too many steps.
  std::vector<int32_t> encode(std::string_view text, EncodeOptions options = {}) const;
  // The pieces joined, as one text; added tokens are recognised only where they lie wholly in text that is not input.
  std::vector<int32_t> encode(std::span<const TextPiece> pieces, size_t most = SIZE_MAX) const;

  // Ids that are not in the vocabulary (padding rows of the embedding) decode to nothing, here and below.
  std::string decode(std::span<const int32_t> ids, bool skip_special = false) const;

  // The bytes of one token; they may be a part of a character.
  std::string_view id_to_piece(int32_t id) const;
  // The token as the vocabulary spells it ("Ġthe"), and back.
  std::string_view id_to_token(int32_t id) const;
  std::optional<int32_t> token_to_id(std::string_view token) const;
  bool is_special(int32_t id) const;  // left out when special tokens are skipped
  bool is_added(int32_t id) const;    // found in text as a whole, special or not

  int32_t size() const { return static_cast<int32_t>(tokens_.size()); }                  // highest id + 1
  int32_t model_size() const { return static_cast<int32_t>(parts_.vocabulary.size()); }  // without added tokens

  std::optional<int32_t> bos_id() const { return roles_.bos; }
  std::optional<int32_t> eos_id() const { return roles_.eos; }
  std::optional<int32_t> pad_id() const { return roles_.pad; }
  std::optional<int32_t> unk_id() const { return roles_.unk; }
  // The template's text, empty if the folder has none of this name.
  std::string_view chat_template(const std::string& name = "default") const;
  const std::map<std::string, std::string>& chat_templates() const { return roles_.chat_templates; }

 private:
  struct Token {
    std::string spelling = {};
    std::string bytes = {};
    bool added = false, special = false;
  };

  Tokenizer(TokenizerParts parts, TokenizerRoles roles);
  const Token* find(int32_t id) const;
  std::vector<int32_t> encode(const MarkedText& text, bool add_special, size_t most) const;
  void encode_words(std::string_view text, PreTokenizer::Words& words, Bpe::Scratch& scratch, size_t most,
                    std::vector<int32_t>& ids) const;

  TokenizerParts parts_;
  TokenizerRoles roles_;
  AddedTokenMatcher raw_matcher_, normalized_matcher_;
  std::vector<Token> tokens_;  // by id
  size_t longest_ = 0;         // bytes of any token; 0: bytes may be left out, so that ids say nothing of them
  TokenIds added_ids_;
};

}  // namespace calandra
