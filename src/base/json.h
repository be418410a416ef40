// Boost.JSON with the project's limits and error messages. Values keep the order of their keys.
#pragma once

#include <boost/json.hpp>

#include <filesystem>
#include <string>
#include <string_view>

namespace calandra {

namespace json = boost::json;

// Parses one JSON text. `what` names the text in the error ("config.json of DIR"). Throws LoadError with line and
// column. Depth is limited to 256; bytes that are not UTF-8 are refused.
json::value parse_json(std::string_view text, std::string_view what);
// The same for what clients send: refuses more values than `values_left`, names and lists counted too, and takes them
// from it. Each takes up to 75 bytes while the text is read, whatever it takes there; names 32 more.
json::value parse_json(std::string_view text, std::string_view what, size_t& values_left);

// Reads and parses a file of at most `max_bytes`. Throws LoadError naming the file.
json::value read_json_file(const std::filesystem::path& file, size_t max_bytes = size_t{256} << 20);

// The whole content of a file of at most `max_bytes`. Throws LoadError naming the file.
std::string read_text_file(const std::filesystem::path& file, size_t max_bytes = size_t{256} << 20);

// Compact JSON text; numbers in shortest round-trip form ("1.5", "1e-07", never "1E0"); NaN and infinities become null.
std::string to_json(const json::value& value);

// The number that one writes for a float: 0.7, where the float itself is 0.699999988079071.
double as_written(float x);

}  // namespace calandra
