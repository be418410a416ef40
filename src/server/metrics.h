// The engine's numbers as Prometheus reads them, under vLLM's names.
#pragma once

#include <string>
#include <string_view>

#include "engine/engine_stats.h"

namespace calandra::server {

std::string prometheus_text(const EngineStats& stats, std::string_view model_name, int64_t http_requests);

}  // namespace calandra::server
