// Any bytes as what a client sends, however they are cut: the same requests and the same fault, which are those of a
// second, plain reader of HTTP/1.1 as this server takes it.
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

// Whether the first request of the bytes is whole, and then what it is. Only of what is surely right: a short request
// line and short fields.
bool read_plainly(std::string_view bytes, std::string& request) {
  const size_t end = bytes.find("\r\n\r\n");
  if (end == std::string_view::npos) return false;
  std::string_view head = bytes.substr(0, end), body = bytes.substr(end + 4);
  for (const char c : head)
    if ((static_cast<unsigned char>(c) < 0x20 && c != '\r' && c != '\n') || static_cast<unsigned char>(c) > 0x7e)
      return false;
  const std::string_view first = line_of(head);
  const size_t space = first.find(' ');
  if (space == std::string_view::npos || !is_token(first.substr(0, space)) || !first.ends_with(" HTTP/1.1"))
    return false;
  if (first.size() < space + 11) return false;
  const std::string_view target = first.substr(space + 1, first.size() - space - 10);
  if (target.empty() || target.find_first_of(" \r\n") != std::string_view::npos) return false;
  size_t length = 0;
  bool is_chunked = false, has_length = false;
  while (!head.empty()) {
    const std::string_view line = line_of(head);
    if (line.find_first_of("\r\n") != std::string_view::npos) return false;
    const size_t colon = line.find(':');
    if (colon == std::string_view::npos || !is_token(line.substr(0, colon))) return false;
    const std::string name = lower(line.substr(0, colon)), value = lower(trim(line.substr(colon + 1)));
    if (name == "connection" || name == "proxy-connection" || name == "upgrade") return false;
    if (name == "content-length") {
      if (has_length || is_chunked || value.empty() || value.size() > 6) return false;
      if (value.find_first_not_of("0123456789") != std::string::npos) return false;
      has_length = true;
      length = std::stoul(value);
    }
    if (name == "transfer-encoding") {
      if (has_length || is_chunked || value != "chunked") return false;
      is_chunked = true;
    }
  }
  std::string content;
  while (is_chunked) {
    if (body.find("\r\n") == std::string_view::npos) return false;
    const std::string_view size = line_of(body);
    if (size.empty() || size.size() > 4 || size.find_first_not_of("0123456789abcdefABCDEF") != std::string_view::npos)
      return false;
    const size_t count = std::stoul(std::string(size), nullptr, 16);
    if (count == 0) {
      if (!body.starts_with("\r\n")) return false;
      break;
    }
    if (body.size() < count + 2 || body.substr(count, 2) != "\r\n") return false;
    content += body.substr(0, count);
    body.remove_prefix(count + 2);
  }
  if (!is_chunked) {
    if (body.size() < length) return false;
    content = body.substr(0, length);
  }
  request = std::string(first.substr(0, space)) + "\n" + std::string(target) + "\n" + content;
  return true;
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
  if (read_plainly(bytes, request) && (whole.requests.empty() || whole.requests.front() != request)) std::abort();
  return 0;
}
