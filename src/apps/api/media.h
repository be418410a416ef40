// The pictures and videos of a chat: from their URLs to what the vision tower reads, within limits.
#pragma once

#include <functional>
#include <span>
#include <variant>

#include "apps/api/byte_ledger.h"
#include "apps/api/chat_messages.h"
#include "apps/pictures.h"
#include "net/fetch.h"
#include "net/local_file.h"

namespace calandra::apps {

class MediaLoader {
 public:
  // Throws UsageError or LoadError for flags that are wrong. `loaded` must outlive it.
  // `longest`: most tokens of a prompt.
  MediaLoader(const LoadedModel& loaded, const MediaFlags& flags, int64_t longest);

  // A prompt without pictures.
  Pictures none() const { return Pictures(reader_); }
  // Fetched, decoded, resized and cut into patches, one after the other. `kwargs`: the request's mm_processor_kwargs.
  // `gone` is asked now and then; true ends it. Any thread may call it. Throws LoadError for wrong `kwargs`.
  std::variant<Pictures, RequestError> load(std::span<const MediaPart> parts, const json::object& kwargs,
                                            const std::function<bool()>& gone) const;

 private:
  class Work;

  const LoadedModel& loaded_;
  const int64_t longest_;
  PictureReader reader_;
  int64_t most_images_ = 64, most_videos_ = 8;
  net::FetchRules fetch_rules_;
  net::LocalFolder local_folder_;
  std::unique_ptr<ByteLedger> decoding_;  // while one is decoded and cut into patches
  std::shared_ptr<ByteLedger> kept_;      // patches that requests hold
};

}  // namespace calandra::apps
