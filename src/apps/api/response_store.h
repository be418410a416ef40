// Responses that have ended, for clients that ask for them again or go on from them. Kept up to a number and to a
// number of bytes; the oldest go first, and one that would push out many is not kept. Any thread may call it.
#pragma once

#include <list>
#include <map>
#include <mutex>
#include <optional>
#include <string>

namespace calandra::apps {

class ResponseStore {
 public:
  struct Kept {
    std::string response;  // JSON
    std::string turns;     // JSON: the conversation before it, as messages of a chat
  };
  ResponseStore(size_t most, size_t most_bytes) : most_(most), most_bytes_(most_bytes) {}

  void put(const std::string& id, Kept kept);
  std::optional<Kept> find(const std::string& id) const;
  bool erase(const std::string& id);
  size_t bytes() const;

 private:
  using Entry = std::pair<std::string, Kept>;
  static size_t size_of(const Entry& entry);
  void drop(std::list<Entry>::iterator entry);

  const size_t most_, most_bytes_;
  mutable std::mutex mutex_;
  size_t bytes_ = 0;
  std::list<Entry> entries_;  // oldest first
  std::map<std::string, std::list<Entry>::iterator, std::less<>> by_id_;
};

}  // namespace calandra::apps
