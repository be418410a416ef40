#include "apps/api/form_parts.h"

#include <utility>

namespace calandra::apps {

OutputEvents FormParts::pick(OutputEvents events) {
  OutputEvents picked;
  for (OutputEvent& event : events) {
    if (event.kind == OutputEvent::Kind::kReasoning && !with_reasoning_) continue;
    if (event.kind != OutputEvent::Kind::kContent) {
      in_text_ = false;
      space_.clear();
      picked.push_back(std::move(event));
      continue;
    }
    space_ += event.text;
    if (!in_text_ && skip_space(space_, 0) == space_.size()) continue;
    in_text_ = true;
    picked.push_back({OutputEvent::Kind::kContent, std::exchange(space_, {})});
  }
  return picked;
}

}  // namespace calandra::apps
