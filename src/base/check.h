// CHECK: programmer errors. A failed check prints both values and the scope trail, then aborts; checks stay on in
// release builds.
#pragma once

#include <sstream>
#include <string>
#include <string_view>

namespace calandra {

[[noreturn]] void check_failed(const char* file, int line, std::string_view condition, std::string_view detail);

// One step of the scope trail that a failed check prints ("model / layer 12 / linear_attn / gated_delta_rule").
// Costs a pointer push; `name` must outlive the scope. The trail is per thread.
class Scope {
 public:
  explicit Scope(const char* name, int index = -1);
  ~Scope();
  Scope(const Scope&) = delete;
  Scope& operator=(const Scope&) = delete;

  // The trail of the calling thread, " / " between scopes.
  static std::string trail();

 private:
  const char* name_;
  int index_;
  Scope* outer_;
};

namespace detail {
template <class A, class B>
std::string both_values(const A& a, const B& b) {
  std::ostringstream out;
  out << +a << " against " << +b;
  return out.str();
}
inline std::string both_values(const std::string& a, const std::string& b) { return a + " against " + b; }
}  // namespace detail

}  // namespace calandra

#define CHECK(condition)                                                            \
  do {                                                                              \
    if (!(condition)) ::calandra::check_failed(__FILE__, __LINE__, #condition, ""); \
  } while (0)
#define CHECK_MSG(condition, message)                                                      \
  do {                                                                                     \
    if (!(condition)) ::calandra::check_failed(__FILE__, __LINE__, #condition, (message)); \
  } while (0)
#define CHECK_OP_(a, op, b)                                                          \
  do {                                                                               \
    const auto& check_a_ = (a);                                                      \
    const auto& check_b_ = (b);                                                      \
    if (!(check_a_ op check_b_))                                                     \
      ::calandra::check_failed(__FILE__, __LINE__, #a " " #op " " #b,                \
                               ::calandra::detail::both_values(check_a_, check_b_)); \
  } while (0)
#define CHECK_EQ(a, b) CHECK_OP_(a, ==, b)
#define CHECK_NE(a, b) CHECK_OP_(a, !=, b)
#define CHECK_LT(a, b) CHECK_OP_(a, <, b)
#define CHECK_LE(a, b) CHECK_OP_(a, <=, b)
#define CHECK_GT(a, b) CHECK_OP_(a, >, b)
#define CHECK_GE(a, b) CHECK_OP_(a, >=, b)
