// What xgrammar makes of the pattern of a string of JSON, which its interface does not tell.
#pragma once

#include <string>

namespace calandra {

// Whether it builds an automaton of the pattern that leaves out what may not stand in such a string as it is (quotes,
// backslashes, control characters), and texts are left that match. Otherwise a schema would take the pattern with
// those. Throws what xgrammar throws.
bool keeps_pattern_of_json_string(const std::string& pattern);

}  // namespace calandra
