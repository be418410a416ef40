#include "base/json.h"

#include <charconv>
#include <cmath>
#include <fstream>

#include "base/error.h"

namespace calandra {
namespace {

void append(std::string& out, const json::value& value);

void append_string(std::string& out, std::string_view text) {
  out += '"';
  size_t plain = 0;  // the first byte that is not in `out`
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (static_cast<unsigned char>(c) >= 0x20 && c != '"' && c != '\\') continue;
    out += text.substr(plain, i - plain);
    plain = i + 1;
    constexpr std::string_view kShort = "\"\\\b\f\n\r\t", kLetters = "\"\\bfnrt";
    constexpr const char* kHex = "0123456789abcdef";
    out += '\\';
    if (const size_t at = kShort.find(c); at != std::string_view::npos)
      out += kLetters[at];
    else
      (out += "u00") += {kHex[c >> 4], kHex[c & 15]};
  }
  out += text.substr(plain);
  out += '"';
}

void append_double(std::string& out, double x) {
  if (!std::isfinite(x)) {
    out += "null";
    return;
  }
  char buffer[32];
  const auto end = std::to_chars(buffer, buffer + sizeof buffer, x).ptr;
  const std::string_view text(buffer, end - buffer);
  out += text;
  if (text.find_first_of(".e") == std::string_view::npos) out += ".0";
}

void append(std::string& out, const json::value& value) {
  switch (value.kind()) {
    case json::kind::double_:
      append_double(out, value.get_double());
      return;
    case json::kind::string:
      append_string(out, value.get_string());
      return;
    case json::kind::array: {
      out += '[';
      bool first = true;
      for (const json::value& item : value.get_array()) {
        if (!first) out += ',';
        first = false;
        append(out, item);
      }
      out += ']';
      return;
    }
    case json::kind::object: {
      out += '{';
      bool first = true;
      for (const auto& member : value.get_object()) {
        if (!first) out += ',';
        first = false;
        append_string(out, member.key());
        out += ':';
        append(out, member.value());
      }
      out += '}';
      return;
    }
    default:
      out += json::serialize(value);
      return;
  }
}

}  // namespace

json::value parse_json(std::string_view text, std::string_view what) {
  json::parse_options options;
  options.max_depth = 256;
  json::error_code error;
  json::stream_parser parser({}, options);
  const size_t read = parser.write_some(text.data(), text.size(), error);
  if (!error && read < text.size()) error = json::error::extra_data;
  if (!error) parser.finish(error);
  if (error) {
    const std::string_view before = text.substr(0, std::min(read, text.size()));
    const size_t line = 1 + std::count(before.begin(), before.end(), '\n');
    throw LoadError(std::string(what) + " is not valid JSON: " + error.message() + " near line " +
                    std::to_string(line) + ", byte " + std::to_string(read));
  }
  return parser.release();
}

std::string read_text_file(const std::filesystem::path& file, size_t max_bytes) {
  std::error_code code;
  const auto status = std::filesystem::status(file, code);
  if (!std::filesystem::exists(status)) throw LoadError("cannot read " + file.string() + ": no such file");
  if (!std::filesystem::is_regular_file(status))
    throw LoadError("cannot read " + file.string() + ": not a regular file");
  const auto bytes = std::filesystem::file_size(file, code);
  if (code) throw LoadError("cannot read " + file.string() + ": " + code.message());
  if (bytes > max_bytes)
    throw LoadError(file.string() + " has " + std::to_string(bytes) + " bytes; at most " + std::to_string(max_bytes) +
                    " are read");
  std::ifstream in(file, std::ios::binary);
  std::string text(bytes, '\0');
  if (!in || !in.read(text.data(), static_cast<std::streamsize>(bytes)))
    throw LoadError("cannot read " + file.string() + ": the read failed");
  return text;
}

json::value read_json_file(const std::filesystem::path& file, size_t max_bytes) {
  return parse_json(read_text_file(file, max_bytes), file.string());
}

std::string to_json(const json::value& value) {
  std::string out;
  append(out, value);
  return out;
}

}  // namespace calandra
