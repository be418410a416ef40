// The engine's clock: seconds that only grow. Tests and simulations bring their own.
#pragma once

#include <functional>

namespace calandra {

using Clock = std::function<double()>;

}  // namespace calandra
