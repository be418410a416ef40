#include "base/json.h"

#include <boost/json/basic_parser_impl.hpp>

#include <charconv>
#include <cmath>
#include <cstdint>
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

// What the parser tells of a text, made to a value or only counted: boost::json::parser with a limit of values.
class ValueMaker {
 public:
  static constexpr size_t max_object_size = json::object::max_size(), max_array_size = json::array::max_size(),
                          max_key_size = json::string::max_size(), max_string_size = json::string::max_size();

  ValueMaker(size_t& values_left, bool keeps) : left_(values_left), keeps_(keeps) { stack_.reset(); }
  bool is_over() const { return is_over_; }
  json::value release() { return stack_.release(); }

  bool on_document_begin(json::error_code&) { return true; }
  bool on_document_end(json::error_code&) { return true; }
  bool on_object_begin(json::error_code&) { return true; }
  bool on_object_end(size_t members, json::error_code& error) {
    return add(error, [&] { stack_.push_object(members); });
  }
  bool on_array_begin(json::error_code&) { return true; }
  bool on_array_end(size_t items, json::error_code& error) {
    return add(error, [&] { stack_.push_array(items); });
  }
  bool on_key_part(json::string_view part, size_t, json::error_code&) { return add_part(part); }
  bool on_key(json::string_view part, size_t, json::error_code& error) {
    return add(error, [&] { stack_.push_key(part); });
  }
  bool on_string_part(json::string_view part, size_t, json::error_code&) { return add_part(part); }
  bool on_string(json::string_view part, size_t, json::error_code& error) {
    return add(error, [&] { stack_.push_string(part); });
  }
  bool on_number_part(json::string_view, json::error_code&) { return true; }
  bool on_int64(int64_t number, json::string_view, json::error_code& error) {
    return add(error, [&] { stack_.push_int64(number); });
  }
  bool on_uint64(uint64_t number, json::string_view, json::error_code& error) {
    return add(error, [&] { stack_.push_uint64(number); });
  }
  bool on_double(double number, json::string_view, json::error_code& error) {
    return add(error, [&] { stack_.push_double(number); });
  }
  bool on_bool(bool is_true, json::error_code& error) {
    return add(error, [&] { stack_.push_bool(is_true); });
  }
  bool on_null(json::error_code& error) {
    return add(error, [&] { stack_.push_null(); });
  }
  bool on_comment_part(json::string_view, json::error_code&) { return true; }
  bool on_comment(json::string_view, json::error_code&) { return true; }

 private:
  template <class Push>
  bool add(json::error_code& error, Push push) {
    is_over_ = left_ == 0;
    if (is_over_) return error = json::error::array_too_large, false;
    --left_;
    if (keeps_) push();
    return true;
  }
  bool add_part(json::string_view part) {
    if (keeps_) stack_.push_chars(part);
    return true;
  }

  json::value_stack stack_;
  size_t& left_;
  const bool keeps_;
  bool is_over_ = false;
};

}  // namespace

json::value parse_json(std::string_view text, std::string_view what) {
  size_t no_limit = SIZE_MAX;
  return parse_json(text, what, no_limit);
}

json::value parse_json(std::string_view text, std::string_view what, size_t& values_left) {
  const size_t most_values = values_left;
  json::parse_options options;
  options.max_depth = 256;
  json::error_code error;
  // What may have too many values is counted before anything is allocated for them: each takes two bytes at least.
  if (text.size() / 2 > most_values) {
    size_t left = most_values;
    json::error_code ignored;  // it is found again
    json::basic_parser<ValueMaker> counter(options, left, /*keeps=*/false);
    counter.write_some(/*more=*/false, text.data(), text.size(), ignored);
    if (counter.handler().is_over()) values_left = 0;
  }
  json::basic_parser<ValueMaker> parser(options, values_left, /*keeps=*/true);
  const size_t read = parser.write_some(/*more=*/false, text.data(), text.size(), error);
  if (parser.handler().is_over())
    throw LoadError(std::string(what) + " has more than " + std::to_string(most_values) + " values");
  if (!error && read < text.size()) error = json::error::extra_data;
  if (error) {
    const std::string_view before = text.substr(0, std::min(read, text.size()));
    const size_t line = 1 + std::count(before.begin(), before.end(), '\n');
    throw LoadError(std::string(what) + " is not valid JSON: " + error.message() + " near line " +
                    std::to_string(line) + ", byte " + std::to_string(read));
  }
  return parser.handler().release();
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

double as_written(float x) {
  char buffer[32];
  const auto end = std::to_chars(buffer, buffer + sizeof buffer, x).ptr;
  double written = 0;
  std::from_chars(buffer, end, written);
  return written;
}

}  // namespace calandra
