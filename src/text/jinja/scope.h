// Which variable a name means: decided before rendering, as jinja2's compiler does it (idtracking), because its rules
// show in the output: loops and macros see assignments of the scopes around them, but their own do not leave them.
#pragma once

#include "text/jinja/ast.h"

namespace calandra::jinja {

// Fills the slots and scope codes of the tree. Throws Failure("TemplateAssertionError").
void resolve_scopes(Tree& tree);

}  // namespace calandra::jinja
