// JsonFollower: one JSON object as it arrives, passed on as far as it is certain to be JSON.
//
// What has been passed on can be closed at any time: keys, commas and unfinished numbers are held back until a value
// begins behind them. Inside of strings what models forget to escape is mended: control characters are passed on as
// escapes, and of an escape that JSON does not have the backslash is one of the text. Other faults end the object.
#pragma once

#include <string>
#include <string_view>

namespace calandra {

class JsonFollower {
 public:
  // The text begins where the last push stopped, first at the opening brace. Appends to `json` what is certain now.
  // Returns how many bytes belong to the object: all, unless it ends or is broken behind them.
  size_t push(std::string_view text, std::string& json);

  bool complete() const { return next_ == Next::kNothing; }
  bool broken() const { return next_ == Next::kFault; }

  // What makes an object of what was passed on.
  std::string closing() const;
  // Of the bytes that belong to the object: the last ones, which were not passed on.
  size_t held_bytes() const { return held_.size() - mended_ + escape_.size() + literal_.size(); }

 private:
  // What may come next.
  enum class Next { kValue, kFirst, kKey, kColon, kString, kLiteral, kCommaOrEnd, kNothing, kFault };

  bool take(char c, std::string& json);
  void take_in_string(char c, std::string& json);
  bool begin_value(char c, std::string& json);
  bool end_container(char c, std::string& json);
  void put(std::string_view text, size_t size, std::string& json);
  void release(std::string& json);

  Next next_ = Next::kValue;
  std::string open_;  // "{[": the containers that are open
  bool is_key_ = false;
  std::string held_;     // not certain yet
  size_t mended_ = 0;    // bytes of it that the text does not have
  std::string escape_;   // of a string: an escape that has not ended
  std::string literal_;  // a number, true, false or null
};

}  // namespace calandra
