#include "net/curl_library.h"

#include <dlfcn.h>

#include <optional>

namespace calandra::net {
namespace {

std::optional<CurlLibrary> open_library() {
  void* const library = dlopen("libcurl.so.4", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) return std::nullopt;
  CurlLibrary curl{};
  bool all = true;
  const auto load = [&](auto& function, const char* name) {
    function = reinterpret_cast<std::remove_reference_t<decltype(function)>>(dlsym(library, name));
    all = all && function != nullptr;
  };
  load(curl.global_init, "curl_global_init");
  load(curl.easy_init, "curl_easy_init");
  load(curl.easy_setopt, "curl_easy_setopt");
  load(curl.easy_perform, "curl_easy_perform");
  load(curl.easy_getinfo, "curl_easy_getinfo");
  load(curl.easy_cleanup, "curl_easy_cleanup");
  load(curl.easy_strerror, "curl_easy_strerror");
  load(curl.slist_append, "curl_slist_append");
  load(curl.slist_free_all, "curl_slist_free_all");
  load(curl.url, "curl_url");
  load(curl.url_set, "curl_url_set");
  load(curl.url_get, "curl_url_get");
  load(curl.url_cleanup, "curl_url_cleanup");
  load(curl.free, "curl_free");
  if (!all || curl.global_init(CURL_GLOBAL_DEFAULT) != CURLE_OK) return std::nullopt;
  return curl;
}

}  // namespace

const CurlLibrary* CurlLibrary::get() {
  static const std::optional<CurlLibrary> library = open_library();
  return library ? &*library : nullptr;
}

}  // namespace calandra::net
