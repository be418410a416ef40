#include "engine/checkpoint_bytes.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "base/error.h"

namespace calandra {
namespace {

static_assert(std::endian::native == std::endian::little, "the byte form is written as memory holds it");

constexpr std::array<char, 8> kMagic = {'C', 'A', 'L', 'C', 'K', 'P', 'T', '\n'};
constexpr uint32_t kVersion = 1;

uint64_t checksum(std::span<const std::byte> bytes) {
  uint64_t sum = bytes.size();
  for (size_t at = 0; at < bytes.size(); at += 8) {
    uint64_t word = 0;
    std::memcpy(&word, bytes.data() + at, std::min<size_t>(8, bytes.size() - at));
    sum = (std::rotl(sum, 29) ^ word) * 0x9e3779b97f4a7c15u;  // odd, so one changed word always changes the sum
  }
  return sum;
}

template <class T>
void append(std::vector<std::byte>& bytes, const T& value) {
  const auto* begin = reinterpret_cast<const std::byte*>(&value);
  bytes.insert(bytes.end(), begin, begin + sizeof(T));
}

// Reads a form from its begin to its end; errors name the source.
class Reader {
 public:
  Reader(std::span<const std::byte> bytes, std::string_view source) : bytes_(bytes), source_(source) {}

  [[noreturn]] void fail(const std::string& what) const {
    throw LoadError("saved checkpoint " + std::string(source_) + ": " + what);
  }
  const std::byte* take(uint64_t size, const char* what) {
    if (size > bytes_.size() - at_)
      fail("truncated: " + std::to_string(size) + " bytes of " + what + " expected at byte " + std::to_string(at_) +
           ", " + std::to_string(bytes_.size() - at_) + " there; save it again");
    at_ += size;
    return bytes_.data() + at_ - size;
  }
  template <class T>
  T take(const char* what) {
    T value;
    std::memcpy(&value, take(sizeof(T), what), sizeof(T));
    return value;
  }
  size_t at() const { return at_; }

 private:
  std::span<const std::byte> bytes_;
  std::string_view source_;
  size_t at_ = 0;
};

// What differs in two layouts: their first unequal line.
std::string first_difference(std::string_view expected, std::string_view found) {
  const auto line_at = [](std::string_view text, size_t begin) {
    return text.substr(begin, text.find('\n', begin) - begin);
  };
  size_t begin = 0;
  for (size_t i = 0; i < std::min(expected.size(), found.size()) && expected[i] == found[i]; ++i)
    if (expected[i] == '\n') begin = i + 1;
  return "expected \"" + std::string(line_at(expected, begin)) + "\", found \"" + std::string(line_at(found, begin)) +
         "\"";
}

int64_t bytes_of_pages(const CheckpointStore& store, int64_t P) { return store.pages().content_bytes(P); }

// N and accepted stand before the hidden rows. A wrong count would make the device read past its pending updates.
void check_counts(const Reader& reader, const SlotPool& slots, const CheckpointContent& content) {
  const Tensor& hidden = slots.hidden();
  const int64_t hidden_bytes = hidden.size(1) * hidden.size(2) * static_cast<int64_t>(size_of(hidden.dtype()));
  int32_t counts[2];
  std::memcpy(counts, content.slot + slots.bytes_per_slot() - hidden_bytes - sizeof(counts), sizeof(counts));
  const int64_t N = counts[0], accepted = counts[1];
  if (N < 0 || accepted < 0 || accepted > slots.pending_capacity() || N + accepted != content.P)
    reader.fail("damaged: the slot says N " + std::to_string(N) + ", accepted " + std::to_string(accepted) +
                ", the header " + std::to_string(content.P) + " tokens");
}

}  // namespace

std::string checkpoint_layout(const PagePool& pages, const SlotPool& slots) {
  std::string layout = "page of " + std::to_string(pages.page_tokens()) + " tokens\n" + "pending updates of " +
                       std::to_string(slots.pending_capacity()) + " tokens\n";
  const auto add = [&](const std::string& what, const Tensor& tensor) {
    layout += what + " " + std::string(name_of(tensor.dtype())) + "[";
    for (int axis = 1; axis < tensor.rank(); ++axis)
      layout += (axis > 1 ? ", " : "") + std::to_string(tensor.size(axis));
    layout += "]\n";
  };
  for (int layer = 0; layer < slots.layers(); ++layer)
    for (const Tensor& tensor : slots.layer(layer)) add("layer " + std::to_string(layer) + " slot", tensor);
  add("hidden rows", slots.hidden());
  for (int layer = 0; layer < pages.layers(); ++layer)
    for (const Tensor& tensor : pages.layer(layer)) add("layer " + std::to_string(layer) + " page", tensor);
  return layout;
}

std::vector<std::byte> save_checkpoint(const CheckpointStore& store, const CheckpointIdentity& identity,
                                       const Checkpoint& checkpoint, std::span<const TokenKey> keys) {
  CHECK_EQ(std::ssize(keys), checkpoint.P);
  const std::string layout = checkpoint_layout(store.pages(), store.slots());
  const auto slot_bytes = static_cast<uint64_t>(store.slot_bytes());
  const auto page_bytes = static_cast<uint64_t>(bytes_of_pages(store, checkpoint.P));
  std::vector<std::byte> bytes;
  bytes.reserve(256 + layout.size() + keys.size_bytes() + slot_bytes + page_bytes);
  append(bytes, kMagic);
  append(bytes, kVersion);
  append(bytes, identity.model_hash);
  append(bytes, identity.rank);
  append(bytes, identity.ranks);
  append(bytes, checkpoint.P);
  append(bytes, checkpoint.mtp_begin);
  append(bytes, int64_t{checkpoint.position_delta});
  append(bytes, uint64_t{layout.size()});
  append(bytes, slot_bytes);
  append(bytes, page_bytes);
  const auto as_bytes = std::as_bytes(std::span(layout));
  bytes.insert(bytes.end(), as_bytes.begin(), as_bytes.end());
  const auto keys_bytes = std::as_bytes(keys);
  bytes.insert(bytes.end(), keys_bytes.begin(), keys_bytes.end());
  store.append_content(checkpoint, bytes);
  append(bytes, checksum(bytes));
  return bytes;
}

SavedCheckpoint read_checkpoint(const CheckpointStore& store, const CheckpointIdentity& identity,
                                std::span<const std::byte> bytes, std::string_view source) {
  Reader reader(bytes, source);
  if (reader.take<std::array<char, 8>>("magic") != kMagic) reader.fail("not a checkpoint of calandra: wrong magic");
  if (const auto version = reader.take<uint32_t>("version"); version != kVersion)
    reader.fail("version " + std::to_string(version) + ", this program reads version " + std::to_string(kVersion) +
                "; save it again with this program");
  if (reader.take<std::array<uint64_t, 4>>("model hash") != identity.model_hash)
    reader.fail("of another model or other weights: the model hash differs; load the model that saved it");
  const auto rank = reader.take<int32_t>("rank"), ranks = reader.take<int32_t>("ranks");
  if (rank != identity.rank || ranks != identity.ranks)
    reader.fail("of rank " + std::to_string(rank) + " of " + std::to_string(ranks) + ", expected rank " +
                std::to_string(identity.rank) + " of " + std::to_string(identity.ranks));

  SavedCheckpoint saved;
  CheckpointContent& content = saved.content;
  content.P = reader.take<int64_t>("P");
  content.mtp_begin = reader.take<int64_t>("mtp_begin");
  const auto position_delta = reader.take<int64_t>("position_delta");
  const auto layout_bytes = reader.take<uint64_t>("layout size");
  const auto slot_bytes = reader.take<uint64_t>("slot size"), page_bytes = reader.take<uint64_t>("page size");
  const std::string expected = checkpoint_layout(store.pages(), store.slots());
  const std::string_view found(reinterpret_cast<const char*>(reader.take(layout_bytes, "layout")), layout_bytes);
  if (found != expected)
    reader.fail("number formats or shapes differ: " + first_difference(expected, found) +
                "; use the cache and speculation flags that it was saved under");
  // Token counts are 32 bits wide on the device.
  if (content.P < 1 || content.P > INT32_MAX) reader.fail("damaged: P is " + std::to_string(content.P));
  if (content.mtp_begin < 0 || content.mtp_begin > content.P || position_delta != static_cast<int32_t>(position_delta))
    reader.fail("damaged: mtp_begin " + std::to_string(content.mtp_begin) + ", position_delta " +
                std::to_string(position_delta) + " with P " + std::to_string(content.P));
  content.position_delta = static_cast<int32_t>(position_delta);
  if (slot_bytes != static_cast<uint64_t>(store.slot_bytes()) ||
      page_bytes != static_cast<uint64_t>(bytes_of_pages(store, content.P)))
    reader.fail("damaged: " + std::to_string(slot_bytes) + " bytes of slot, " + std::to_string(page_bytes) +
                " of pages; expected " + std::to_string(store.slot_bytes()) + " and " +
                std::to_string(bytes_of_pages(store, content.P)));

  const uint64_t keys_bytes = 8 * static_cast<uint64_t>(content.P);
  const std::byte* keys = reader.take(keys_bytes, "keys");
  content.slot = reader.take(slot_bytes, "slot");
  for (int64_t i = 0; i < store.pages_of(content.P); ++i) {
    const int64_t tokens = store.entries(content.P, static_cast<size_t>(i));
    content.pages.push_back(reader.take(static_cast<uint64_t>(store.pages().content_bytes(tokens)), "page"));
  }
  const size_t summed = reader.at();
  if (reader.take<uint64_t>("checksum") != checksum(bytes.first(summed))) reader.fail("damaged: the checksum differs");
  if (reader.at() != bytes.size())
    reader.fail(std::to_string(bytes.size() - reader.at()) + " bytes follow the end of the checkpoint");
  check_counts(reader, store.slots(), content);
  saved.keys.resize(static_cast<size_t>(content.P));
  std::memcpy(saved.keys.data(), keys, keys_bytes);
  return saved;
}

}  // namespace calandra
