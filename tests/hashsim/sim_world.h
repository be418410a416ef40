// SimWorld: everything that one seed of the engine simulation draws before it runs: model, limits, options, requests.
// Small numbers of everything and odd mixtures, so that rare branches are common.
#pragma once

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/engine_core.h"
#include "tests/hashsim/hash_model.h"
#include "tests/hashsim/solo_answer.h"

namespace calandra::hashsim {

// splitmix64 (Steele, Lea, Flood, OOPSLA 2014): the same numbers everywhere.
class Draw {
 public:
  explicit Draw(uint64_t seed) : state_(seed) {}
  uint64_t word() { return mix(state_ += 0x9e3779b97f4a7c15, 0); }
  int64_t in(int64_t least, int64_t most) {  // both ends included
    return least + static_cast<int64_t>(word() % static_cast<uint64_t>(most - least + 1));
  }
  bool chance(int percent) { return in(0, 99) < percent; }
  float real(float least, float most) { return least + (most - least) * static_cast<float>(in(0, 1000)) / 1000; }
  template <class T>
  const T& of(const std::vector<T>& list) {
    return list[static_cast<size_t>(in(0, std::ssize(list) - 1))];
  }

 private:
  uint64_t state_;
};

// A place of a prompt: text, or a row of an image.
struct SimToken {
  int32_t id = 0;
  int32_t content = -1;  // of the image; -1: text
  int32_t row = 0, height = 0, width = 0;
  bool operator==(const SimToken&) const = default;
};

// Pictures by content and shape, and what the tower makes of them.
class SimPictures {
 public:
  explicit SimPictures(const HashModelConfig& config) : model_(config) {}

  struct Picture {
    std::shared_ptr<const EncoderInput> input;
    ImageEmbeds embeds;  // [height * width, D]
  };
  const Picture& get(int32_t content, int32_t height, int32_t width);

 private:
  HashModel model_;
  ReferenceBackend backend_;
  std::map<std::array<int32_t, 3>, Picture> pictures_;
};

struct SimRequest {
  Request request;
  int64_t arrival = 0;                            // step
  bool refused = false;                           // add() must give an error
  std::vector<SimToken> tokens;                   // of the prompt
  std::vector<uint64_t> images;                   // of each token, image_hash of its row; 0: text
  std::vector<std::unique_ptr<SoloAnswer>> solo;  // of each choice

  // As the simulation goes on.
  RequestId id = 0;
  bool cancelled = false;
  struct Told {
    int64_t tokens = 0, forced_preemptions = 0;
    int64_t step = -1;  // in which it was told a token last
    bool ended = false;
  };
  std::vector<Told> told;  // of each choice
};

struct SimWorld {
  // `change` has the last word.
  explicit SimWorld(uint64_t seed, const std::function<void(SimWorld&)>& change = {});

  std::string words() const;

  // For who draws other requests, perhaps after changing limits and options: none are left, and prompts will begin in
  // other ways.
  void clear_requests(Draw& draw);
  SimRequest& add_request(Draw& draw);
  // `change` has the last word on the request.
  SimRequest& add_request(Draw& draw, const std::vector<SimToken>& tokens,
                          const std::function<void(Request&)>& change = {});
  std::vector<SimToken> draw_text(Draw& draw, int64_t count);
  void draw_image(Draw& draw, std::vector<SimToken>& tokens);  // behind these; of a model that sees
  void see();                                                  // gives the model a vision tower

  SoloRules rules;
  RunnerLimits limits;
  EngineOptions options;
  bool long_ring = false;           // no hidden row is lost, so MTP entries stay complete
  int64_t fault_steps = 0;          // so long things happen between the steps
  std::deque<SimRequest> requests;  // in order of arrival
  SoloSampler sampler;
  std::unique_ptr<SimPictures> pictures;

 private:
  void draw_limits(Draw& draw);
  void draw_options(Draw& draw);
  void draw_roots(Draw& draw);
  std::vector<SimToken> draw_prompt(Draw& draw);
  void draw_params(Draw& draw, Request& request);

  std::vector<std::vector<SimToken>> roots_;
  uint64_t seeds_drawn_ = 0;
};

// Makes the request's prompt of these tokens. `encoded`: its pictures come as rows that were made already.
void set_prompt(SimRequest& to, const std::vector<SimToken>& tokens, bool encoded, SimPictures& pictures);

}  // namespace calandra::hashsim
