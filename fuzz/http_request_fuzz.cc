// Any bytes as what a client sends, however they are cut: the same requests and the same fault, which are those of a
// second, plain reader of HTTP/1.1 as this server takes it.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "server/request_reader.h"

namespace {

using namespace calandra;
using namespace calandra::server;

struct Read {
  std::vector<std::string> requests;  // method, target and body, a newline between
  bool refused = false;
  bool operator==(const Read&) const = default;
};

// `cut` gives the size of the next part.
template <class Cut>
Read read(std::string_view bytes, const ServerOptions& options, Cut&& cut) {
  RequestReader reader(options);
  Read result;
  bool in_body = false;
  while (!bytes.empty()) {
    const std::string_view part = bytes.substr(0, cut());
    bytes.remove_prefix(part.size());
    std::memcpy(reader.prepare(part.size()).data(), part.data(), part.size());
    reader.commit(part.size());
    std::optional<RequestError> fault;
    while (in_body ? reader.read_body(fault) : reader.read_head(fault)) {
      if (fault) {
        if (fault->status != 400 && fault->status != 413 && fault->status != 431) std::abort();
        result.refused = true;
        return result;
      }
      if (in_body)
        result.requests.push_back(std::string(reader.request().method_string()) + "\n" +
                                  std::string(reader.request().target()) + "\n" + reader.take_body());
      in_body = !in_body;
    }
  }
  return result;
}

bool is_token(std::string_view text) {
  if (text.empty()) return false;
  for (const char c : text) {
    const bool is_plain = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
    if (!is_plain && std::string_view("!#$%&'*+-.^_`|~").find(c) == std::string_view::npos) return false;
  }
  return true;
}

std::string_view trim(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t')) text.remove_suffix(1);
  return text;
}

bool has_control(std::string_view text) {
  return std::any_of(text.begin(), text.end(),
                     [](char c) { return (static_cast<unsigned char>(c) < 0x20 && c != '\t') || c == 0x7f; });
}

std::string lower(std::string_view text) {
  std::string out(text);
  for (char& c : out)
    if (c >= 'A' && c <= 'Z') c += 32;
  return out;
}

std::string_view line_of(std::string_view& text) {
  const size_t end = text.find("\r\n");
  const std::string_view line = text.substr(0, end);
  text.remove_prefix(end == std::string_view::npos ? text.size() : end + 2);
  return line;
}

// What the first request of the bytes is.
enum class Plainly { kWhole, kPart, kRefused, kUnsure };

// The value of a number of digits, all leading zeros allowed; more than any limit where it has too many for that.
size_t number_of(std::string_view digits, int base) {
  digits.remove_prefix(std::min(digits.find_first_not_of('0'), digits.size()));
  if (digits.empty()) return 0;
  return digits.size() > 12 ? SIZE_MAX / 2 : std::stoull(std::string(digits), nullptr, base);
}

// Chunks without extensions and without fields behind the last, for which the reader is unsure.
Plainly read_chunks_plainly(std::string_view body, const ServerOptions& options, std::string& content) {
  if (body.size() < 5) return Plainly::kPart;  // "0\r\n\r\n"
  while (true) {
    const size_t end = body.find("\r\n");
    const std::string_view size = body.substr(0, end);
    // No more than what the other one looks at before it has a whole line.
    if (end == std::string_view::npos) return Plainly::kUnsure;
    if (size.find_first_of(";\r\n \t") != std::string_view::npos) return Plainly::kUnsure;
    if (size.empty() || size.find_first_not_of("0123456789abcdefABCDEF") != std::string_view::npos) {
      const bool may_be_last = size.starts_with('0') && body.find("\r\n\r\n") == std::string_view::npos;
      return may_be_last ? Plainly::kUnsure : Plainly::kRefused;  // the last one is looked at when all of it is there
    }
    const size_t count = number_of(size, 16);
    body.remove_prefix(end + 2);
    if (content.size() + count > options.body_bytes) return Plainly::kRefused;
    if (count == 0) return body.starts_with("\r\n") ? Plainly::kWhole : Plainly::kUnsure;
    if (body.size() < count + 2) return Plainly::kUnsure;
    if (body.substr(count, 2) != "\r\n")  // looked at together with the length behind it
      return body.find("\r\n", count + 2) == std::string_view::npos ? Plainly::kUnsure : Plainly::kRefused;
    content += body.substr(0, count);
    body.remove_prefix(count + 2);
  }
}

// kUnsure: what the reader under test may take or not, such as letters outside of ASCII in a head.
Plainly read_plainly(std::string_view bytes, const ServerOptions& options, std::string& request) {
  const size_t end = bytes.find("\r\n\r\n");
  if (end == std::string_view::npos) return Plainly::kPart;
  std::string_view head = bytes.substr(0, end);
  const std::string_view body = bytes.substr(end + 4);
  if (std::any_of(head.begin(), head.end(), [](char c) { return static_cast<unsigned char>(c) > 0x7f; }))
    return Plainly::kUnsure;
  const std::string_view first = line_of(head);
  const size_t space = first.find(' ');
  if (first.ends_with(" HTTP/1.0")) return Plainly::kUnsure;
  if (space == std::string_view::npos || !is_token(first.substr(0, space)) || !first.ends_with(" HTTP/1.1"))
    return Plainly::kRefused;
  if (first.size() < space + 11) return Plainly::kRefused;
  const std::string_view target = first.substr(space + 1, first.size() - space - 10);
  if (has_control(target) || target.find_first_of(" \t") != std::string_view::npos) return Plainly::kRefused;
  size_t length = 0, fields = 0;
  bool is_chunked = false, has_length = false, is_unsure = false;
  while (!head.empty()) {
    const std::string_view line = line_of(head);
    const size_t colon = line.find(':');
    if (has_control(line) || colon == std::string_view::npos || !is_token(line.substr(0, colon)))
      return Plainly::kRefused;
    if (++fields > options.headers) return Plainly::kRefused;
    const std::string name = lower(line.substr(0, colon)), value = lower(trim(line.substr(colon + 1)));
    is_unsure = is_unsure || name == "connection" || name == "proxy-connection" || name == "upgrade";
    if (name == "content-length") {
      if (has_length || is_chunked || value.empty() || value.find_first_not_of("0123456789") != std::string::npos)
        return Plainly::kRefused;
      has_length = true;
      length = number_of(value, 10);
      if (length > options.body_bytes) return Plainly::kRefused;
    }
    if (name == "transfer-encoding") {
      if (has_length || is_chunked || value != "chunked") return Plainly::kRefused;
      is_chunked = true;
    }
  }
  if (is_unsure) return Plainly::kUnsure;
  std::string content;
  if (is_chunked) {
    const Plainly read = read_chunks_plainly(body, options, content);
    if (read != Plainly::kWhole) return read;
  } else {
    if (body.size() < length) return Plainly::kPart;
    content = body.substr(0, length);
  }
  request = std::string(first.substr(0, space)) + "\n" + std::string(target) + "\n" + content;
  return Plainly::kWhole;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 2 || size > 8192) return 0;
  const ServerOptions options;
  uint32_t noise = data[0] * 256u + data[1];
  const std::string_view bytes(reinterpret_cast<const char*>(data) + 2, size - 2);
  const Read whole = read(bytes, options, [&] { return bytes.size(); });
  if (read(bytes, options, [] { return 1; }) != whole) std::abort();
  for (const uint32_t most : {4u, 40u}) {
    const Read cut = read(bytes, options, [&] {
      noise = noise * 1664525 + 1013904223;
      return 1 + (noise >> 16) % most;
    });
    if (cut != whole) std::abort();
  }
  std::string request;
  switch (read_plainly(bytes, options, request)) {
    case Plainly::kWhole:
      if (whole.requests.empty() || whole.requests.front() != request) std::abort();
      break;
    case Plainly::kPart:
      if (!whole.requests.empty() || whole.refused) std::abort();
      break;
    case Plainly::kRefused:
      if (!whole.requests.empty() || !whole.refused) std::abort();
      break;
    case Plainly::kUnsure:
      break;
  }
  return 0;
}
