#include "apps/input_text.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

#include "base/error.h"

namespace calandra::apps {
namespace {

[[noreturn]] void cannot_read(const std::string& name, int reason) {
  throw LoadError("cannot read " + name + ": " + std::strerror(reason));
}

std::string name_of(const std::string& file) { return file == "-" ? "standard input" : file; }

std::string read_all(int fd, const std::string& name, size_t max_bytes) {
  std::string text;
  for (;;) {
    const size_t size = text.size();
    constexpr size_t kStep = 1 << 16;
    text.resize(size + kStep);
    const ssize_t n = ::read(fd, text.data() + size, kStep);
    const int reason = errno;
    text.resize(size + static_cast<size_t>(n > 0 ? n : 0));
    if (n < 0 && reason == EINTR) continue;
    if (n < 0) cannot_read(name, reason);
    if (n == 0) return text;
    if (text.size() > max_bytes)
      throw LoadError(name + " has more than " + std::to_string(max_bytes) + " bytes, which is the most that is read");
  }
}

}  // namespace

std::string read_text(const std::string& file, size_t max_bytes) {
  if (file == "-") return read_all(STDIN_FILENO, name_of(file), max_bytes);
  const int fd = ::open(file.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) cannot_read(file, errno);
  struct Closer {
    int fd;
    ~Closer() { ::close(fd); }
  } const closer{fd};
  return read_all(fd, file, max_bytes);
}

json::value read_json(const std::string& file) { return parse_json(read_text(file), name_of(file)); }

bool read_line(std::string& line) {
  line.clear();
  for (;;) {
    const int c = std::getc(stdin);
    if (c == '\n') return true;
    if (c != EOF) {
      line += static_cast<char>(c);
    } else if (std::ferror(stdin) == 0) {
      return !line.empty();
    } else if (errno == EINTR) {
      std::clearerr(stdin);
    } else {
      cannot_read("standard input", errno);
    }
  }
}

}  // namespace calandra::apps
