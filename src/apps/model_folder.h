// Which folder MODEL means.
#pragma once

#include <filesystem>
#include <string>

namespace calandra::apps {

// A folder; "demo:qwen3_5" (also the meaning of an empty name); or a Hugging Face name ("Qwen/Qwen3.5-0.8B") in the
// local cache ($HF_HUB_CACHE, $HF_HOME/hub, ~/.cache/huggingface/hub). Throws LoadError that says where it looked.
// The demo model lies in $CALANDRA_DEMO_DIR, or in demo/ beside or above the executable, or in its installation's share
// folder.
std::filesystem::path find_model_folder(const std::string& model);

// Whether a word can only mean a model: "demo:…", or what find_model_folder finds, with a config or a tokenizer in it.
bool names_model(const std::string& word);

}  // namespace calandra::apps
