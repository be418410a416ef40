// `calandra bench acceptance`: how often drafts of the MTP layers are accepted, by position, beside what other ways of
// drafting and verifying would reach at the same places.
//
// The engine answers prompts cut from a text. Along each answer, at every place and for the j-th draft behind it, given
// that those before are right, p is the target's distribution after all sampling parameters and q the drafter's:
//   coupled   the drafter's sample is the target's, both with the noise of that place (what the engine does)
//   ideal     rejection sampling of a draft that is sampled from q: the sum of min(p, q)
//   greedy    the drafter's likeliest token, accepted with its probability in p
#include <algorithm>

#include "apps/bench/bench_throughput.h"
#include "apps/output.h"
#include "apps/verbs.h"
#include "base/error.h"
#include "base/progress.h"

namespace calandra::apps {
namespace {

struct Rates {
  int64_t places = 0;
  std::vector<double> coupled, ideal, greedy;  // sums over places, by position
};

double overlap(const ops::SampledRow& p, const ops::SampledRow& q) {
  double sum = 0;
  size_t j = 0;
  for (size_t i = 0; i < p.distribution_ids.size(); ++i) {
    while (j < q.distribution_ids.size() && q.distribution_ids[j] < p.distribution_ids[i]) ++j;
    if (j < q.distribution_ids.size() && q.distribution_ids[j] == p.distribution_ids[i])
      sum += std::min(p.distribution_probs[i], q.distribution_probs[j]);
  }
  return sum;
}

double probability(const ops::SampledRow& row, int32_t id) {
  const auto found = std::lower_bound(row.distribution_ids.begin(), row.distribution_ids.end(), id);
  if (found == row.distribution_ids.end() || *found != id) return 0;
  return row.distribution_probs[static_cast<size_t>(found - row.distribution_ids.begin())];
}

// One answer, read again by a runner that keeps all its hidden rows.
class Follower {
 public:
  Follower(ModelRunner& runner, const SamplingContext& context, int drafts)
      : runner_(runner), context_(context), drafts_(drafts) {}

  void follow(Sequence sequence, int64_t prompt_size, Rates& rates) {
    tokens_ = sequence.tokens;
    CHECK(runner_.reserve(sequence, sequence.size()));
    at_ = sequence;
    at_.prompt_size = prompt_size;
    read_target(sequence, prompt_size);
    write_entries(sequence, prompt_size - 1);
    for (int64_t known = prompt_size; known + drafts_ <= sequence.size(); ++known) {
      ++rates.places;
      draft(sequence, known, prompt_size, rates);
    }
    runner_.release(sequence);
  }

 private:
  // target_[i]: how token prompt_size + i was sampled.
  void read_target(Sequence& sequence, int64_t prompt_size) {
    target_.clear();
    const int64_t T = sequence.size(),
                  most = std::min(runner_.limits().max_num_batched_tokens, ModelRunner::kLogitRows);
    while (sequence.computed < T) {
      const ModelRunner::Part part{&sequence, std::min(most, T - sequence.computed)};
      const int64_t begin = sequence.computed;
      const Tensor hidden = runner_.forward({&part, 1});
      rows_.clear();
      batch_.clear();
      for (int64_t token = std::max(prompt_size, begin + 1); token < std::min(T, begin + part.rows + 1); ++token) {
        rows_.push_back(static_cast<int32_t>(token - 1 - begin));
        add_row(token, 0);
      }
      if (rows_.empty()) continue;
      sample(runner_.logits(hidden, rows_));
      target_.insert(target_.end(), result_.rows.begin(), result_.rows.begin() + std::ssize(rows_));
    }
  }

  void write_entries(Sequence& sequence, int64_t end) {
    for (int64_t begin = 1; begin < end;) {
      const int64_t count = std::min(runner_.limits().max_num_batched_tokens, end - begin);
      run(sequence, begin, count,
          runner_.gather_hidden(std::vector<ModelRunner::HiddenRows>{{&sequence, begin - 1, begin + count - 1}}), 0);
      begin += count;
    }
  }

  // As the engine does: the true entry of the last known token, then provisional ones.
  void draft(Sequence& sequence, int64_t known, int64_t prompt_size, Rates& rates) {
    Tensor hidden =
        run(sequence, known - 1, 1,
            runner_.gather_hidden(std::vector<ModelRunner::HiddenRows>{{&sequence, known - 2, known - 1}}), 0);
    for (int j = 0;; ++j) {
      rows_ = {0};
      batch_.clear();
      batch_.token_ids = runner_.model().drafter()->token_ids();
      add_row(known, j);
      sample(runner_.draft_logits(hidden, rows_));
      const ops::SampledRow &q = result_.rows[0], &p = target_[static_cast<size_t>(known + j - prompt_size)];
      rates.coupled[j] += q.token == p.token;
      rates.ideal[j] += overlap(p, q);
      rates.greedy[j] += probability(p, q.greedy_id);
      if (j + 1 == drafts_) return;
      const Tensor before = runner_.keep_hidden(hidden, rows_);
      hidden = run(sequence, known + j, 1, before, j + 1);
    }
  }

  Tensor run(Sequence& sequence, int64_t entry, int64_t count, const Tensor& hidden, int64_t step) {
    const ModelRunner::DraftPart part{
        &sequence, entry, std::span(tokens_).subspan(static_cast<size_t>(entry), static_cast<size_t>(count))};
    return runner_.draft({&part, 1}, hidden, step);
  }

  // The row that samples token known + drafts.
  void add_row(int64_t known, int64_t drafts) {
    at_.tokens.assign(tokens_.begin(), tokens_.begin() + known);
    const auto before = std::span(tokens_).subspan(static_cast<size_t>(known), static_cast<size_t>(drafts));
    CHECK(add_sampling_row(batch_, at_, before, static_cast<int32_t>(batch_.rows.size()), context_, false));
    batch_.rows.back().distribution = true;
  }
  void sample(const Tensor& logits) { runner_.sample(logits, batch_, result_); }

  ModelRunner& runner_;
  const SamplingContext& context_;
  const int drafts_;
  std::vector<int32_t> tokens_, rows_;
  Sequence at_;  // for sampling rows
  std::vector<ops::SampledRow> target_;
  ops::SamplingBatch batch_;
  ops::SamplingResult result_;
};

std::string shown(const std::vector<double>& values) {
  std::string text;
  for (const double value : values) text += fmt::format(" {:.3f}", value);
  return text;
}

}  // namespace

int bench_acceptance(const Options& given) {
  Options options = given;
  if (!options.engine.speculative) options.engine.speculative = SpeculativeConfig{.num_speculative_tokens = 3};
  SpeculativeConfig& drafting = *options.engine.speculative;
  if (drafting.method != DraftMethod::kMtp) throw UsageError("bench acceptance is about the method mtp");
  drafting.adaptive = false;
  const int k = drafting.num_speculative_tokens;
  if (options.output_len <= k) throw UsageError("--output-len must be above the number of drafts");
  BenchSubject subject(options);
  const CausalLM& model = *subject.loaded.model;
  const int64_t count = options.load.num_prompts.value_or(32), longest = options.input_len + options.output_len;
  if (options.input_len < 2) throw UsageError("--input-len must be at least 2: a draft needs a token before the last");

  std::vector<Request> requests;
  for (int64_t i = 0; i < count; ++i) {
    Request& request = requests.emplace_back(subject.request);
    request.prompt_token_ids = subject.prompts.take(options.input_len);
    request.params.seed = subject.seed + static_cast<uint64_t>(i);
  }
  EngineStats stats;
  std::vector<Sequence> sequences;
  {
    BenchEngine engine(subject, options, {std::min<int64_t>(8, count), longest});
    EngineCore core(engine.runner, nullptr, engine.setup.options);
    ProgressBar bar("answering", count, "answers");
    const std::vector<std::vector<Answer>> answers = core.run(requests, [&](const TokenEvent& event) {
      if (event.finished) bar.update(core.stats().finished_length);
      return true;
    });
    for (size_t i = 0; i < requests.size(); ++i) {
      if (answers[i][0].error) throw LoadError(answers[i][0].error->message);
      Sequence& sequence = sequences.emplace_back();
      sequence.tokens = requests[i].prompt_token_ids;
      sequence.tokens.insert(sequence.tokens.end(), answers[i][0].token_ids.begin(), answers[i][0].token_ids.end());
      sequence.params = requests[i].params;
      sequence.seed = *requests[i].params.seed;
    }
    stats = core.stats();
  }

  Rates rates{0, std::vector<double>(k), std::vector<double>(k), std::vector<double>(k)};
  {
    ModelRunner runner(model, *subject.loaded.backend,
                       {.max_num_seqs = 1,
                        .max_num_batched_tokens = ModelRunner::kLogitRows,
                        .max_model_len = longest,
                        .hidden_ring = longest});
    const SamplingContext context{subject.loaded.eos_token_ids, {}, model.vocab_size()};
    Follower follower(runner, context, k);
    ProgressBar bar("following", count, "answers");
    for (Sequence& sequence : sequences) {
      follower.follow(sequence, options.input_len, rates);
      bar.update(&sequence - sequences.data() + 1);
    }
  }
  std::vector<double> engine;
  for (int j = 0; j < k; ++j)
    engine.push_back(static_cast<double>(stats.accepted_per_position[j]) /
                     static_cast<double>(std::max<int64_t>(1, stats.drafted_per_position[j])));
  for (std::vector<double>* sums : {&rates.coupled, &rates.ideal, &rates.greedy})
    for (double& sum : *sums) sum /= static_cast<double>(rates.places);
  const double per_run =
      1 + static_cast<double>(stats.accepted_tokens) / static_cast<double>(std::max<int64_t>(1, stats.drafts));
  const SamplingParams& params = subject.request.params;
  if (options.json) {
    const auto list = [](const std::vector<double>& values) { return json::array(values.begin(), values.end()); };
    print_json(json::object{{"model", subject.name},
                            {"num_prompts", count},
                            {"input_len", options.input_len},
                            {"output_len", options.output_len},
                            {"temperature", as_written(params.temperature)},
                            {"top_k", params.top_k},
                            {"top_p", as_written(params.top_p)},
                            {"min_p", as_written(params.min_p)},
                            {"drafts", stats.drafts},
                            {"accepted_up_to", list(engine)},
                            {"tokens_per_run", per_run},
                            {"places", rates.places},
                            {"coupled", list(rates.coupled)},
                            {"ideal", list(rates.ideal)},
                            {"greedy", list(rates.greedy)}});
    return 0;
  }
  put("{}: temperature {}, top-k {}, top-p {}, min-p {}; {} answers of {} tokens after {} of the text\n", subject.name,
      params.temperature, params.top_k, params.top_p, params.min_p, count, options.output_len, options.input_len);
  put("  engine    accepted up to each position{}, of {} runs; {:.2f} tokens per run\n", shown(engine), stats.drafts,
      per_run);
  put("  at {} places, given that the drafts before are right\n  coupled  {}\n  ideal    {}\n  greedy   {}\n",
      rates.places, shown(rates.coupled), shown(rates.ideal), shown(rates.greedy));
  return 0;
}

}  // namespace calandra::apps
