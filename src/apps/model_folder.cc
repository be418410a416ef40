#include "apps/model_folder.h"

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <vector>

#include "base/error.h"

namespace calandra::apps {
namespace {

namespace fs = std::filesystem;

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

[[noreturn]] void not_found(const std::string& what, const std::vector<fs::path>& looked_at,
                            const std::string& advice) {
  std::string message = what + " was not found; looked at";
  for (const fs::path& path : looked_at) message += " " + path.string();
  throw LoadError(message + ". " + advice);
}

fs::path find_demo(const std::string& name) {
  const fs::path folder = "demo-" + name;
  std::vector<fs::path> looked_at;
  const auto try_folder = [&](const fs::path& candidate) {
    looked_at.push_back(candidate);
    return fs::is_regular_file(candidate / "config.json");
  };
  if (const std::string dir = environment("CALANDRA_DEMO_DIR"); !dir.empty() && try_folder(fs::path(dir) / folder))
    return looked_at.back();
  std::error_code error;
  const fs::path executable = fs::read_symlink("/proc/self/exe", error);
  for (fs::path above = executable.parent_path(); above.has_relative_path(); above = above.parent_path())
    if (try_folder(above / "demo" / folder)) return looked_at.back();
  if (try_folder(executable.parent_path().parent_path() / "share" / "calandra" / "demo" / folder))
    return looked_at.back();
  not_found("the demo model " + name, looked_at,
            "Set CALANDRA_DEMO_DIR to the folder that holds " + folder.string() + ".");
}

// models--ORG--NAME/snapshots/<commit of refs/main>, as huggingface_hub lays it out.
fs::path find_in_hub_cache(const std::string& name) {
  std::vector<fs::path> caches;
  if (const std::string dir = environment("HF_HUB_CACHE"); !dir.empty()) caches.push_back(dir);
  if (const std::string dir = environment("HF_HOME"); !dir.empty()) caches.push_back(fs::path(dir) / "hub");
  if (const std::string dir = environment("XDG_CACHE_HOME"); !dir.empty())
    caches.push_back(fs::path(dir) / "huggingface" / "hub");
  if (const std::string dir = environment("HOME"); !dir.empty())
    caches.push_back(fs::path(dir) / ".cache" / "huggingface" / "hub");
  std::string entry = "models--" + name;
  entry.replace(entry.find('/'), 1, "--");
  std::vector<fs::path> looked_at;
  fs::path incomplete;
  for (const fs::path& cache : caches) {
    looked_at.push_back(cache / entry);
    std::error_code ignored;
    if (incomplete.empty() && fs::is_directory(cache / entry, ignored)) incomplete = cache / entry;
    std::ifstream ref(cache / entry / "refs" / "main");
    std::string commit;
    if (std::getline(ref, commit)) {
      const fs::path snapshot = cache / entry / "snapshots" / commit;
      if (fs::is_regular_file(snapshot / "config.json")) return snapshot;
    }
  }
  if (!incomplete.empty())
    throw LoadError("the download of " + name + " in " + incomplete.string() +
                    " is incomplete: refs/main or config.json of its snapshot is missing; run `hf download " + name +
                    "` again");
  not_found("model " + name, looked_at, "Download it with `hf download " + name + "`, or give the path of its folder.");
}

}  // namespace

fs::path find_model_folder(const std::string& model) {
  if (model.empty() || model == "demo:qwen3_5") return find_demo("qwen3_5");
  if (model == "demo:bailing") return find_demo("bailing");
  if (model.starts_with("demo:"))
    throw LoadError("there is no demo model " + model + "; there are demo:qwen3_5 and demo:bailing");
  std::error_code ignored;  // of names that are too long for a file
  if (fs::is_directory(model, ignored)) return model;
  if (fs::exists(model, ignored))
    throw LoadError(model + " is a file; a model is a folder with config.json and model.safetensors");
  const bool is_name = std::count(model.begin(), model.end(), '/') == 1 && model.front() != '/' &&
                       model.front() != '.' && model.back() != '/' && model.find("..") == std::string::npos;
  if (is_name) return find_in_hub_cache(model);
  throw LoadError("there is no folder " + model +
                  "; MODEL is a folder, a Hugging Face name like Qwen/Qwen3.5-0.8B, demo:qwen3_5 or demo:bailing");
}

bool names_model(const std::string& word) {
  if (word.starts_with("demo:")) return word.find_first_of(" \t\n") == std::string::npos;
  try {
    const fs::path folder = find_model_folder(word);
    return fs::exists(folder / "config.json") || fs::exists(folder / "tokenizer.json");
  } catch (const LoadError&) {
    return false;
  }
}

}  // namespace calandra::apps
