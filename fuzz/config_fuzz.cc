// Arbitrary bytes as config.json: refused with a LoadError, or a config whose sizes are all within bounds.
#include <cstdint>
#include <string_view>

#include "base/error.h"
#include "base/json.h"
#include "base/log.h"
#include "models/registry.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  using namespace calandra;
  set_log_level(LogLevel::kOff);
  try {
    json::value config = parse_json({reinterpret_cast<const char*>(bytes), size}, "config.json");
    if (!config.is_object()) return 0;
    const ModelConfig checked = check_config(std::move(config.get_object()), "config.json");
    describe(checked);
    unused_tensors(checked, {});
    unused_tensors(checked, {.drafter = true, .vision = true});
  } catch (const LoadError&) {
  }
  return 0;
}
