// What xgrammar makes of the pattern of a string of JSON, which its interface does not tell.
#pragma once

#include <string>

namespace calandra {

// Empty if it builds an automaton of the pattern that leaves out what may not stand in such a string as it is (quotes,
// backslashes, control characters), and texts are left that match: otherwise a schema would take the pattern with
// those. Else why not, with xgrammar's words of what it cannot read. Throws what xgrammar throws.
std::string fault_of_json_string_pattern(const std::string& pattern);

}  // namespace calandra
