// Endpoints for those who run a server (--enable-admin-endpoints), vLLM's: POST /reset_prefix_cache, /reset_mm_cache,
// /reset_encoder_cache, /sleep, /wake_up; GET /is_sleeping.
#pragma once

#include <string_view>

#include "apps/api/handler_pool.h"
#include "apps/api/sleeper.h"
#include "server/http.h"

namespace calandra::apps {

class AdminApi {
 public:
  using Result = HandlerPool::Result;
  // All must outlive it.
  AdminApi(Engine& engine, LoadedModel& loaded, const ModelOptions& options)
      : engine_(engine), sleeper_(engine, loaded, options) {}

  static bool is_admin(std::string_view path);
  // Of such a path. Any thread may call it.
  Result handle(const server::HttpRequest& request, server::Wake wake);
  // Further requests are refused, and what waits is not done. Does not wait.
  void give_up() { thread_.give_up(); }
  // Whether nothing is being done.
  bool is_idle() { return thread_.is_idle(); }
  // Waits for what is being done; then no `wake` is called any more.
  void stop() { thread_.stop(); }

 private:
  Result sleep(const server::HttpRequest& request, server::Wake wake);
  Result wake_up(const server::HttpRequest& request, server::Wake wake);
  server::HttpReply reset(std::string_view path);

  Engine& engine_;
  Sleeper sleeper_;
  HandlerPool thread_{1};  // one after the other; the last: it uses all before it
};

}  // namespace calandra::apps
