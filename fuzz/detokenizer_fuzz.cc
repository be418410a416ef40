// Any token ids as an answer, sent as events while they come: each event is whole UTF-8 by itself, so that its JSON
// gives the text back, and together they are what the ids decode to, up to a stop string.
#include <cstddef>
#include <cstdint>
#include <cstdlib>

#include "base/json.h"
#include "text/detokenizer.h"
#include "text/utf8.h"

namespace {

using namespace calandra;

// Tokens of one byte each, some of two that cut characters, and a special one.
Tokenizer make_tokenizer() {
  // Bytes as GPT-2 spells them.
  json::object vocabulary;
  json::array merges;
  std::vector<std::string> spelled(256);
  int next = 256;
  for (int byte = 0; byte < 256; ++byte) {
    const bool is_itself = (byte >= '!' && byte <= '~') || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
    append_utf8(spelled[byte], static_cast<char32_t>(is_itself ? byte : next++));
    vocabulary[spelled[byte]] = byte;
  }
  const std::pair<int, int> pairs[] = {{0xe4, 0xb8}, {0xad, 0xe4}, {'a', 'b'},
                                       {0xf0, 0x9f}, {0x80, 0x80}, {'\n', '\n'}};
  for (const auto& [a, b] : pairs) {
    merges.push_back(json::array{json::string(spelled[a]), json::string(spelled[b])});
    vocabulary[spelled[a] + spelled[b]] = vocabulary.size();
  }
  const auto special = static_cast<int64_t>(vocabulary.size());
  const json::object file{
      {"added_tokens",
       {json::object{{"id", special},
                     {"content", "<|end|>"},
                     {"special", true},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", false}}}},
      {"pre_tokenizer", json::object{{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", true}}},
      {"decoder", json::object{{"type", "ByteLevel"}}},
      {"model", json::object{{"type", "BPE"}, {"vocab", std::move(vocabulary)}, {"merges", std::move(merges)}}}};
  return Tokenizer::from_json(to_json(file));
}

std::string through_event(const std::string& text) {
  if (!is_valid_utf8(text)) std::abort();
  const std::string event = to_json(json::object{{"delta", json::string(text)}});
  if (event.find('\n') != std::string::npos) std::abort();  // it would end the event
  const json::value read = json::parse(event);
  return std::string(read.at("delta").as_string());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const Tokenizer kTokenizer = make_tokenizer();
  if (size < 1 || size > 1024) return 0;
  DetokenizerOptions options{.skip_special = (data[0] & 1) != 0};
  if ((data[0] & 2) != 0) options.stop = {"ab\n", "\xe4\xb8\xad", "\xef\xbf\xbd\xef\xbf\xbd"};
  options.include_stop_str_in_output = (data[0] & 4) != 0;
  Detokenizer detokenizer(kTokenizer, options);
  std::vector<int32_t> ids;
  std::string told;
  for (size_t i = 1; i < size && !detokenizer.stopped(); ++i) {
    // High bytes are so common that most characters are broken; now and then a token of several bytes.
    const int32_t id = data[i] >= 0xf8 ? kTokenizer.size() - 1 - (data[i] - 0xf8) : data[i];
    ids.push_back(id);
    told += through_event(detokenizer.push(id));
  }
  if (!detokenizer.stopped()) told += through_event(detokenizer.flush());
  const std::string all = kTokenizer.decode(ids, options.skip_special);
  if (told != detokenizer.text()) std::abort();
  if (!detokenizer.stopped() && told != all) std::abort();
  if (detokenizer.stopped() && !all.starts_with(told)) std::abort();
  return 0;
}
