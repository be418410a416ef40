#include "net/local_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/openat2.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <optional>

namespace calandra::net {
namespace {

constexpr std::string_view kBegin = "file:///";

RequestError refused(std::string message) { return {400, "invalid_url", "", std::move(message)}; }

class Descriptor {
 public:
  explicit Descriptor(int number) : number_(number) {}
  ~Descriptor() {
    if (number_ >= 0) close(number_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return number_; }

 private:
  const int number_;
};

int digit_of(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  const char small = static_cast<char>(c | 0x20);
  return small >= 'a' && small <= 'f' ? small - 'a' + 10 : -1;
}

// The path behind "file://", percent-decoded; nothing when it has a query or a broken escape.
std::optional<std::string> path_of(std::string_view url) {
  std::string path;
  for (size_t i = kBegin.size() - 1; i < url.size(); ++i) {
    char c = url[i];
    if (c == '?' || c == '#') return std::nullopt;
    if (c == '%') {
      if (i + 2 >= url.size() || digit_of(url[i + 1]) < 0 || digit_of(url[i + 2]) < 0) return std::nullopt;
      c = static_cast<char>(digit_of(url[i + 1]) * 16 + digit_of(url[i + 2]));
      i += 2;
    }
    if (c == '\0') return std::nullopt;
    path += c;
  }
  return path;
}

// Opens what lies in `folder`, and nothing that a link or ".." leads to outside of it.
int open_beneath(int folder, const std::string& path) {
  open_how how{};
  how.flags = O_RDONLY | O_CLOEXEC | O_NONBLOCK;  // a pipe would wait for its writer
  how.resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS;
  return static_cast<int>(syscall(SYS_openat2, folder, path.c_str(), &how, sizeof(how)));
}

}  // namespace

LocalFolder::LocalFolder(const std::string& flag, const std::filesystem::path& folder) {
  std::error_code failure;
  folder_ = std::filesystem::canonical(folder, failure);
  if (failure || !std::filesystem::is_directory(folder_, failure))
    throw UsageError(fmt::format("{}: {} is no folder", flag, folder.string()));
  const Descriptor root(open(folder_.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  const Descriptor itself(open_beneath(root.get(), "."));
  if (itself.get() < 0 && (errno == ENOSYS || errno == EPERM))
    throw UsageError(fmt::format(
        "{}: this kernel, or the sandbox around the program, has no openat2, which keeps links from leading out of the "
        "folder; Linux 5.6 or newer is needed",
        flag));
  if (itself.get() < 0)
    throw UsageError(fmt::format("{}: {} cannot be opened: {}", flag, folder.string(), strerrordesc_np(errno)));
}

std::variant<std::string, RequestError> LocalFolder::read(std::string_view url, int64_t max_bytes) const {
  if (folder_.empty())
    return refused(
        "files of the server are not read: send the file in a data: URL, or start the server with "
        "--allowed-local-media-path");
  const auto path = url.starts_with(kBegin) ? path_of(url) : std::nullopt;
  const std::string begin = folder_ == "/" ? "/" : folder_.string() + "/";
  const auto no_file = [] { return refused("the URL names no file in the folder of --allowed-local-media-path"); };
  if (!path || !path->starts_with(begin) || path->size() == begin.size()) return no_file();

  const Descriptor root(open(folder_.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  const Descriptor file(root.get() < 0 ? -1 : open_beneath(root.get(), path->substr(begin.size())));
  if (file.get() < 0 && (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == EAGAIN))
    return RequestError{503, "service_unavailable", "", "the server cannot open a file now; try again later"};
  struct stat facts {};
  if (file.get() < 0 || fstat(file.get(), &facts) != 0 || !S_ISREG(facts.st_mode)) return no_file();
  if (facts.st_size > max_bytes)
    return RequestError{400, "file_too_large", "", fmt::format("the file has more than {} bytes", max_bytes)};
  std::string bytes(static_cast<size_t>(facts.st_size), '\0');
  size_t filled = 0;
  while (filled < bytes.size()) {
    const ssize_t count = ::read(file.get(), bytes.data() + filled, bytes.size() - filled);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return no_file();
    filled += static_cast<size_t>(count);
  }
  return bytes;
}

}  // namespace calandra::net
