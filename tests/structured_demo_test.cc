// Structured output on the demo models: an answer keeps its form, and is the same, to the bit, with drafts and in a
// batch.
#include <gtest/gtest.h>

#include <algorithm>
#include <regex>

#include "base/json.h"
#include "structured/grammar_compiler.h"
#include "tests/losslessness_session.h"

namespace calandra::lossless {
namespace {

constexpr const char* kSchema = R"({"type": "object", "properties": {"kind": {"enum": ["ancient", "new", "old"]},
  "count": {"type": "integer", "minimum": 0, "maximum": 999}, "sure": {"type": "boolean"}},
  "required": ["kind", "count", "sure"]})";

class Forms {
 public:
  explicit Forms(Subject& subject)
      : subject_(subject), compiler_(grammar_vocabulary(*subject.tokenizer), subject.config.eos_token_ids) {}

  void add(const std::string& name, const OutputForm& form, float temperature, std::vector<int32_t> thinking_end = {}) {
    const GrammarCompiler::Compiled compiled = compiler_.compile(form, std::move(thinking_end));
    ASSERT_FALSE(compiled.error) << compiled.error->message;
    Request request;
    request.prompt_token_ids = text_of(subject_, 40 * std::ssize(asked_), 24);
    request.params.temperature = temperature;
    request.params.seed = 7;
    request.params.max_tokens = 40;
    request.params.logprobs = 2;
    request.grammar = compiled.grammar;
    asked_.push_back(ask(subject_, name, request));
  }
  const std::vector<AskedRequest>& asked() const { return asked_; }

 private:
  Subject& subject_;
  GrammarCompiler compiler_;
  std::vector<AskedRequest> asked_;
};

TEST(StructuredDemo, SameAnswersWithDraftsAndInABatch) {
  Subject& subject = *lossless::subject("demo-qwen3_5");
  Forms forms(subject);
  const OutputForm schema = OutputForm::json_schema(parse_json(kSchema, "schema"), true);
  const OutputForm words = OutputForm::regex("(the|a) [a-z]{2,9} (cat|dog)s?( and (the|a) [a-z]{2,9})*\\.");
  // Free words up to the first of a frequent token, as behind thoughts.
  const std::vector<int32_t> thinking_end = {text_of(subject, 0, 1)[0]};
  for (const float temperature : {0.f, 0.8f}) {
    forms.add("schema", schema, temperature);
    forms.add("regex", words, temperature);
    forms.add("choice", OutputForm::choice({"yes, it is", "no, it is not", "perhaps it is"}), temperature);
    forms.add("object", {.kind = OutputForm::Kind::kJsonObject}, temperature);
    forms.add("behind thoughts", schema, temperature, thinking_end);
  }
  std::vector<const AskedRequest*> all;
  int64_t longest = 0;
  for (const AskedRequest& asked : forms.asked()) {
    all.push_back(&asked);
    longest = std::max<int64_t>(longest, std::ssize(asked.request.prompt_token_ids) + *asked.request.params.max_tokens);
    const Answer& plain = asked.plain[0];
    if (plain.finish_reason != FinishReason::kStop) continue;
    if (asked.name == "schema") {
      const json::object value = parse_json(plain.text, plain.text).as_object();
      EXPECT_TRUE(value.size() == 3 && value.at("count").is_int64() && value.at("sure").is_bool()) << plain.text;
    }
    if (asked.name == "regex") {
      EXPECT_TRUE(
          std::regex_match(plain.text, std::regex("(the|a) [a-z]{2,9} (cat|dog)s?( and (the|a) [a-z]{2,9})*\\.")))
          << plain.text;
    }
    if (asked.name == "choice") {
      EXPECT_TRUE(plain.text == "yes, it is" || plain.text == "no, it is not" || plain.text == "perhaps it is");
    }
  }
  Tally tally;
  for (const DraftMethod method : {DraftMethod::kMtp, DraftMethod::kNgram}) {
    for (const int64_t batch : {1, 4}) {
      Setting setting{.drafting = {method, 3}, .batch = batch, .preemptions = batch > 1 ? 1 : 0, .seed = 5};
      ample_limits(setting, longest);
      Session(subject, setting, tally).run(all);
    }
  }
  std::printf("%s\n", tally.words().c_str());
  EXPECT_EQ(tally.differences, 0) << tally.first;
  EXPECT_EQ(tally.runs, 4 * std::ssize(all));
  EXPECT_GT(tally.accepted, 0);
  EXPECT_GT(tally.drafted, tally.accepted);
}

}  // namespace
}  // namespace calandra::lossless
