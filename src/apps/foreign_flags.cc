#include "apps/foreign_flags.h"

#include <fmt/format.h>

#include "base/error.h"

namespace calandra::apps {
namespace {

constexpr const char* kOneDevice = "several devices are not supported yet";
constexpr const char* kModelsType = "caches have the model's type (--dtype)";
constexpr const char* kState = "the recurrent state is always float32";
constexpr const char* kDrafts = "drafts are asked for with --speculative-config";
constexpr const char* kTemplate =
    "the model's own template is used: chat_template.jinja or tokenizer_config.json in its folder";

using Kind = ForeignFlag::Kind;
constexpr ForeignFlag kForeign[] = {
    {"--model --model-path -m", Kind::kModel},
    // lengths and memory
    {"--ctx-size --context-length -c", Kind::kAlias, "--max-model-len"},
    {"--parallel -np --max-running-requests", Kind::kAlias, "--max-num-seqs"},
    {"--batch-size -b --chunked-prefill-size", Kind::kAlias, "--max-num-batched-tokens"},
    {"--ubatch-size -ub", Kind::kMissing, {}, "a step is not cut further; --max-num-batched-tokens is its size"},
    {"--n-predict --predict -n", Kind::kAlias, "--max-tokens", "requests say it themselves, with max_tokens"},
    {"--temp", Kind::kAlias, "--temperature", "requests say it themselves, with temperature"},
    {"--mem-fraction-static", Kind::kAlias, "--gpu-memory-utilization"},
    {"--page-size", Kind::kAlias, "--block-size"},
    {"--cpu-offload-gb", Kind::kOnly, "0", "all weights lie in the memory of the backend"},
    {"--kv-offloading-size --cache-ram -cram", Kind::kMissing, {}, "--host-checkpoint-bytes keeps states on the host"},
    {"--enable-sleep-mode", Kind::kAlways},
    // the model
    {"--trust-remote-code", Kind::kAlways},  // no code of models is run
    {"--revision --code-revision --tokenizer-revision", Kind::kMissing, {}, "give the folder of the snapshot as MODEL"},
    {"--tokenizer --tokenizer-path", Kind::kMissing, {}, "the tokenizer is that of MODEL's folder"},
    {"--tokenizer-mode", Kind::kOnly, "auto", "there is one tokenizer"},
    {"--download-dir", Kind::kMissing, {}, "set HF_HOME or HF_HUB_CACHE"},
    {"--hf-repo -hf -hfr", Kind::kMissing, {}, "download it first and give its name as MODEL"},
    {"--mmproj", Kind::kMissing, {}, "the vision tower is read from MODEL's folder"},
    {"--no-mmproj", Kind::kAlias, "--language-model-only"},
    {"--json-model-override-args", Kind::kAlias, "--hf-overrides"},
    {"--random-seed -s", Kind::kAlias, "--seed"},
    {"--quantization -q", Kind::kMissing, {}, "weights have the format of their files"},
    {"--enable-lora --lora-modules --lora --lora-paths", Kind::kMissing, {}, "LoRA adapters are not supported yet"},
    // caches
    {"--disable-radix-cache", Kind::kAlias, "--no-enable-prefix-caching"},
    {"--enable-chunked-prefill", Kind::kAlways},
    {"--no-enable-chunked-prefill",
     Kind::kMissing,
     {},
     "prompts longer than --max-num-batched-tokens are always cut; raise that"},
    {"--kv-cache-dtype", Kind::kOnly, "auto", kModelsType},
    {"--cache-type-k --cache-type-v -ctk -ctv", Kind::kMissing, {}, kModelsType},
    {"--mamba-cache-mode", Kind::kOnly, "align|all", "--no-enable-prefix-caching keeps no states"},
    {"--mamba-block-size", Kind::kMissing, {}, "states are kept at any token: --checkpoint-interval"},
    {"--mamba-cache-dtype", Kind::kOnly, "auto", kModelsType},
    {"--mamba-ssm-cache-dtype --mamba-ssm-dtype", Kind::kOnly, "auto|float32", kState},
    {"--prefix-caching-hash-algo",
     Kind::kMissing,
     {},
     "kept states are found by the tokens themselves, without hashes"},
    // devices
    {"--tensor-parallel-size --tp-size --tp -tp", Kind::kOnly, "1", kOneDevice},
    {"--pipeline-parallel-size --pp-size --pp -pp", Kind::kOnly, "1", kOneDevice},
    {"--data-parallel-size --dp-size --dp -dp", Kind::kOnly, "1", kOneDevice},
    {"--expert-parallel-size --ep-size --ep", Kind::kOnly, "1", kOneDevice},
    {"--nnodes", Kind::kOnly, "1", kOneDevice},
    {"--node-rank", Kind::kOnly, "0", kOneDevice},
    {"--enable-expert-parallel -ep --enable-eplb --eplb-config", Kind::kMissing, {}, kOneDevice},
    {"--master-addr --master-port --dist-init-addr", Kind::kMissing, {}, kOneDevice},
    {"--gpu-layers --n-gpu-layers -ngl", Kind::kOnly, "auto|all|-1|99|999", "all layers run on one --backend"},
    {"--flash-attn -fa", Kind::kOnly, "auto|on|1", "attention has one form"},
    {"--disable-cuda-graph", Kind::kAlias, "--enforce-eager"},
    {"-t", Kind::kAlias, "--threads"},
    {"--cont-batching -cb", Kind::kAlways},
    // drafts
    {"--speculative-algorithm --speculative-num-steps --speculative-eagle-topk", Kind::kMissing, {}, kDrafts},
    {"--speculative-num-draft-tokens --draft-max --draft -md --model-draft", Kind::kMissing, {}, kDrafts},
    // chats
    {"--chat-template --chat-template-file", Kind::kMissing, {}, kTemplate},
    {"--chat-template-content-format", Kind::kOnly, "auto", "it is found out from the template"},
    {"--chat-template-kwargs", Kind::kAlias, "--default-chat-template-kwargs"},
    {"--jinja --enable-auto-tool-choice", Kind::kAlways},
    {"--response-role", Kind::kOnly, "assistant", "answers have that role"},
    {"--grammar-backend --guided-decoding-backend", Kind::kOnly, "auto|xgrammar", "there is one"},
    {"--media-path", Kind::kAlias, "--allowed-local-media-path"},
    // the server
    {"--alias -a", Kind::kAlias, "--served-model-name"},
    {"--ssl-key-file", Kind::kAlias, "--ssl-keyfile"},
    {"--ssl-cert-file", Kind::kAlias, "--ssl-certfile"},
    {"--no-webui --no-ui", Kind::kAlias, "--disable-web-page"},
    {"--max-queued-requests", Kind::kAlias, "--max-waiting-requests"},
    {"--root-path --api-prefix", Kind::kMissing, {}, "let the proxy take the prefix off"},
    {"--enable-request-id-headers --metrics --enable-metrics", Kind::kAlways},
    {"--disable-log-requests --no-enable-log-requests", Kind::kAlways},
    {"--enable-log-requests --log-requests", Kind::kMissing, {}, "what users write is never logged"},
    {"--uvicorn-log-level --log-level", Kind::kOnly, "info", "the log has one level"},
    {"--disable-frontend-multiprocessing", Kind::kAlways},
    {"--schedule-policy", Kind::kOnly, "fcfs", "--scheduling-policy is fcfs or priority"},
    {"--enable-priority-scheduling", Kind::kMissing, {}, "it is --scheduling-policy priority"},
};

// Whether `word` is one of the list's words.
bool is_in(std::string_view list, char separator, std::string_view word) {
  for (size_t begin = 0; begin <= list.size();) {
    const size_t end = std::min(list.find(separator, begin), list.size());
    if (list.substr(begin, end - begin) == word) return true;
    begin = end + 1;
  }
  return false;
}

}  // namespace

std::span<const ForeignFlag> foreign_flags() { return kForeign; }

const ForeignFlag* find_foreign_flag(std::string_view flag) {
  for (const ForeignFlag& foreign : kForeign)
    if (is_in(foreign.names, ' ', flag)) return &foreign;
  return nullptr;
}

void check_only_value(const ForeignFlag& foreign, const std::string& flag, std::string_view value) {
  if (is_in(foreign.means, '|', value)) return;
  std::string values(foreign.means);
  for (size_t at = values.find('|'); at != std::string::npos; at = values.find('|', at + 4))
    values.replace(at, 1, " or ");
  throw UsageError(fmt::format("{} can only be {}, not {}: {}", flag, values, value, foreign.why));
}

void refuse_missing(const ForeignFlag& foreign, const std::string& flag) {
  throw UsageError(fmt::format("{} is not supported{}{}", flag, foreign.why.empty() ? "" : ": ", foreign.why));
}

}  // namespace calandra::apps
