// Names that every template knows: range, dict, namespace, cycler, joiner, lipsum, raise_exception, strftime_now.
#pragma once

#include "text/jinja/interpreter.h"

namespace calandra::jinja {

void add_globals(Context& context);

}  // namespace calandra::jinja
