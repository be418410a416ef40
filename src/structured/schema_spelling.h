// JSON schemas in the words of them that xgrammar keeps, such that answers are JSON and valid by the schema as it was.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/json.h"

namespace calandra {

// The same expression in ASCII, as only such ones are kept to what may stand in a string of JSON, and with {0,1} for ?:
// xgrammar 0.2.8 may go from the beginning of an optional part to a loop at its end ("(b[0-9]+)?" takes "7").
std::string spelled_pattern(std::string_view pattern);

// What stands in a text of a call as XML, behind which {m,n} says its length.
inline constexpr std::string_view kAnyXmlText = "[^<]";

// Whether a pattern is a whole one of those that lengths are spelled as: it is counted, not written out.
bool is_length_pattern(std::string_view pattern);

// Letters of a text without maxLength, and the most of any. Without any upper bound xgrammar follows each letter as
// each of the first minLength and as one of those behind them.
inline constexpr int64_t kMostText = int64_t{1} << 30;

// The same schema, or one that allows less: lengths and formats are patterns (xgrammar's own let control characters and
// invalid values through), patterns are spelled as above, a schema of no type has the one that its keywords speak of,
// and an enum has the values of its type.
json::value spelled_schema(json::value schema);

// The first thing of a spelled schema, or of one inside of it, that xgrammar would pass over in silence or keep in
// part; empty: there is none.
std::string not_kept(const json::value& schema);

// Of a spelled schema and those inside of it, but for those of lengths.
std::vector<std::string> patterns_of(const json::value& schema);

inline bool is_schema_of_tag(std::string_view key) { return key == "json_schema" || key == "schema"; }

// Calls `each` with the schemas of the tags of a structural tag.
template <class Value, class F>
void visit_schemas_of_tag(Value& tag, const F& each) {
  if (auto* list = tag.if_array()) {
    for (auto& item : *list) visit_schemas_of_tag(item, each);
  } else if (auto* object = tag.if_object()) {
    for (auto&& member : *object) {
      if (is_schema_of_tag(member.key()))
        each(member.value());
      else
        visit_schemas_of_tag(member.value(), each);
    }
  }
}

}  // namespace calandra
