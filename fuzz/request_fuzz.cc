// Any bytes as the body of a request, of the endpoint that the first byte says: it is refused in words, or read to
// prompts that fit, and both the same way when it is read again.
#include <cstddef>
#include <cstdint>
#include <cstdlib>

#include "apps/api/batch_request.h"
#include "apps/api/messages_request.h"
#include "apps/api/responses_request.h"
#include "base/log.h"

namespace {

using namespace calandra;
using namespace calandra::apps;

constexpr int64_t kLongest = 4096;

// What a reader of bodies asks of a model.
class NoModel final : public CausalLM {
 public:
  explicit NoModel(int64_t vocab_size) : vocab_size_(vocab_size) {}
  int64_t vocab_size() const override { return vocab_size_; }
  int64_t hidden_size() const override { return 64; }
  int64_t max_position_embeddings() const override { return kLongest; }
  DType dtype() const override { return DType::kF32; }
  std::vector<CacheSpec> cache_specs() const override { return {}; }
  Tensor forward(ExecContext&, const Batch&, ModelCaches&) const override { std::abort(); }
  Tensor logits(ExecContext&, const Tensor&) const override { std::abort(); }
  StepCost step_cost() const override { return {}; }

 private:
  const int64_t vocab_size_;
};

LoadedModel load_demo() {
  LoadedModel loaded;
  loaded.tokenizer = Tokenizer::load(DEMO_MODEL);
  loaded.model = std::make_unique<NoModel>(loaded.tokenizer->size());
  loaded.eos_token_ids = {*loaded.tokenizer->eos_id()};
  return loaded;
}

Options quiet_server() {
  set_log_level(LogLevel::kOff);
  Options options;
  options.verb = Verb::kServe;
  return options;
}

struct Served {
  const LoadedModel loaded = load_demo();
  const Options options = quiet_server();
  BatchReader reader{loaded, options, {"m"}, kLongest};
};

using Result = std::variant<BatchBody, RequestError>;

Result read(BatchReader& reader, unsigned endpoint, const json::object& body) {
  switch (endpoint) {
    case 0:
      return reader.read(Endpoint::kCompletions, body);
    case 1:
      return reader.read(Endpoint::kChatCompletions, body);
    case 2:
      return reader.read(Endpoint::kEmbeddings, body);
    case 3: {
      auto form = chat_of_responses(body, {});
      if (auto* error = std::get_if<RequestError>(&form)) return in_words_of_responses(std::move(*error));
      return reader.read(Endpoint::kChatCompletions, std::get<ResponsesChat>(form).body);
    }
    case 4: {
      auto form = chat_of_messages(body);
      if (auto* error = std::get_if<RequestError>(&form)) return std::move(*error);
      return reader.read(Endpoint::kChatCompletions, std::get<json::object>(form));
    }
    case 5: {
      auto form = chat_of_messages(body, /*counting=*/true);
      if (auto* error = std::get_if<RequestError>(&form)) return std::move(*error);
      return reader.read_prompt(std::get<json::object>(form));
    }
    default:
      return reader.read_prompt(body);
  }
}

bool same(const Result& a, const Result& b) {
  if (a.index() != b.index()) return false;
  if (const auto* error = std::get_if<RequestError>(&a))
    return error->param == std::get<RequestError>(b).param && error->message == std::get<RequestError>(b).message;
  const auto &one = std::get<BatchBody>(a).requests, &other = std::get<BatchBody>(b).requests;
  return std::equal(one.begin(), one.end(), other.begin(), other.end(), [](const Request& x, const Request& y) {
    return x.prompt_token_ids == y.prompt_token_ids && x.params.seed == y.params.seed &&
           (x.grammar == nullptr) == (y.grammar == nullptr);
  });
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static Served served;
  if (size < 2 || size > 8192) return 0;
  const unsigned endpoint = (data[0] - unsigned{'0'}) % 7;
  const std::string text(reinterpret_cast<const char*>(data) + 1, size - 1);
  json::value body;
  try {
    body = parse_json(text, "the body");
  } catch (const LoadError&) {
    return 0;
  }
  if (!body.is_object()) return 0;
  const Result result = read(served.reader, endpoint, body.get_object());
  if (const auto* error = std::get_if<RequestError>(&result)) {
    if (error->status != 400 && error->code != "model_not_found") std::abort();
    if (error->message.empty()) std::abort();
  } else {
    const std::vector<Request>& requests = std::get<BatchBody>(result).requests;
    if (requests.empty()) std::abort();
    for (const Request& request : requests)
      if (endpoint < 5 && std::ssize(request.prompt_token_ids) > kLongest) std::abort();
  }
  if (!same(result, read(served.reader, endpoint, body.get_object()))) std::abort();
  return 0;
}
