// libcurl, opened when the first URL is to be fetched: linked, it would bring fifteen further libraries into a program
// that most people run without it.
#pragma once

#include <curl/curl.h>

#include <memory>

namespace calandra::net {

struct CurlLibrary {
  // Null when the library is not installed.
  static const CurlLibrary* get();

  decltype(&::curl_global_init) global_init;
  decltype(&::curl_easy_init) easy_init;
  decltype(&::curl_easy_setopt) easy_setopt;
  decltype(&::curl_easy_perform) easy_perform;
  decltype(&::curl_easy_getinfo) easy_getinfo;
  decltype(&::curl_easy_cleanup) easy_cleanup;
  decltype(&::curl_easy_strerror) easy_strerror;
  decltype(&::curl_slist_append) slist_append;
  decltype(&::curl_slist_free_all) slist_free_all;
  decltype(&::curl_url) url;
  decltype(&::curl_url_set) url_set;
  decltype(&::curl_url_get) url_get;
  decltype(&::curl_url_cleanup) url_cleanup;
  decltype(&::curl_free) free;
};

using CurlUrl = std::unique_ptr<CURLU, decltype(&::curl_url_cleanup)>;

}  // namespace calandra::net
