#include "vision/subprocess.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <thread>
#include <utility>

namespace calandra {
namespace {

using Clock = std::chrono::steady_clock;
constexpr size_t kMostErrorBytes = 4096;

class Descriptor {
 public:
  Descriptor() = default;
  Descriptor(const Descriptor&) = delete;
  ~Descriptor() { close(); }
  void close() {
    if (fd_ >= 0) ::close(fd_);
    fd_ = -1;
  }
  int get() const { return fd_; }
  void set(int fd) { fd_ = fd; }

 private:
  int fd_ = -1;
};

struct Pipe {
  Descriptor read, write;
  bool open() {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0) return false;
    read.set(ends[0]);
    write.set(ends[1]);
    return true;
  }
};

// What the program gets: its descriptors, a process group of its own, default signals.
class SpawnSetting {
 public:
  SpawnSetting(int output, int errors) {
    posix_spawn_file_actions_init(&actions_);
    posix_spawn_file_actions_addopen(&actions_, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_adddup2(&actions_, output, STDOUT_FILENO);
    posix_spawn_file_actions_adddup2(&actions_, errors, STDERR_FILENO);
    posix_spawn_file_actions_addclosefrom_np(&actions_, STDERR_FILENO + 1);
    posix_spawnattr_init(&attributes_);
    sigset_t none, all;
    sigemptyset(&none);
    sigfillset(&all);
    posix_spawnattr_setsigmask(&attributes_, &none);
    posix_spawnattr_setsigdefault(&attributes_, &all);
    posix_spawnattr_setpgroup(&attributes_, 0);
    posix_spawnattr_setflags(&attributes_, POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
  }
  SpawnSetting(const SpawnSetting&) = delete;
  ~SpawnSetting() {
    posix_spawn_file_actions_destroy(&actions_);
    posix_spawnattr_destroy(&attributes_);
  }
  int spawn(const std::vector<std::string>& arguments, pid_t* pid) const {
    std::vector<char*> argv;
    for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
    argv.push_back(nullptr);
    char path[] = "PATH=/usr/local/bin:/usr/bin:/bin", language[] = "LC_ALL=C";
    char* const environment[] = {path, language, nullptr};
    return posix_spawnp(pid, argv[0], &actions_, &attributes_, argv.data(), environment);
  }

 private:
  posix_spawn_file_actions_t actions_;
  posix_spawnattr_t attributes_;
};

void limit(pid_t pid, __rlimit_resource resource, int64_t most) {
  const rlimit bound{static_cast<rlim_t>(most), static_cast<rlim_t>(most)};
  prlimit(pid, resource, &bound, nullptr);
}

enum class Reading { kEnded, kTooLong, kStopped };

// Reads both pipes to their ends.
Reading read_all(int output, int errors, Clock::time_point deadline, const std::function<bool()>& gone,
                 std::string* error_text, const std::function<bool(std::string_view)>& on_output) {
  std::array<pollfd, 2> pipes{pollfd{output, POLLIN, 0}, pollfd{errors, POLLIN, 0}};
  std::vector<char> bytes(size_t{1} << 16);
  while (pipes[0].fd >= 0 || pipes[1].fd >= 0) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now()).count();
    if (left <= 0) return Reading::kTooLong;
    if (gone && gone()) return Reading::kStopped;
    if (poll(pipes.data(), pipes.size(), static_cast<int>(std::min<int64_t>(left, gone ? 50 : 1000))) <= 0) continue;
    for (pollfd& pipe : pipes) {
      if (pipe.fd < 0 || pipe.revents == 0) continue;
      const ssize_t count = read(pipe.fd, bytes.data(), bytes.size());
      if (count < 0 && (errno == EINTR || errno == EAGAIN)) continue;
      if (count <= 0) {
        pipe.fd = -1;
      } else if (&pipe == &pipes[1]) {
        error_text->append(bytes.data(), std::min<size_t>(count, kMostErrorBytes - error_text->size()));
      } else if (!on_output({bytes.data(), static_cast<size_t>(count)})) {
        return Reading::kStopped;
      }
    }
  }
  return Reading::kEnded;
}

// The program's wait status, after it and what it started were killed where they still ran: its group is killed while
// the program is not yet waited for, so that nothing else can have the group's number.
int kill_and_wait(pid_t pid) {
  kill(-pid, SIGKILL);
  int status = -1;
  while (waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  return status;
}

// The same once it has ended by itself, or at the deadline.
int end_of(pid_t pid, Clock::time_point deadline, bool* too_long) {
  siginfo_t ended{};
  while (waitid(P_PID, pid, &ended, WEXITED | WNOHANG | WNOWAIT) == 0 && ended.si_pid != pid) {
    if (Clock::now() >= deadline) {
      *too_long = true;
      break;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return kill_and_wait(pid);
}

}  // namespace

ProcessEnd run_process(const std::vector<std::string>& arguments, const ProcessLimits& limits,
                       const std::function<bool(std::string_view)>& on_output) {
  using Kind = ProcessEnd::Kind;
  const double seconds = std::clamp(limits.seconds, 0.0, 1e6);
  const auto deadline =
      Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
  Pipe output, errors;
  if (!output.open() || !errors.open()) return {Kind::kFailed, 0, "no file descriptors are left"};
  pid_t pid = 0;
  if (const int code = SpawnSetting(output.write.get(), errors.write.get()).spawn(arguments, &pid); code != 0)
    return {code == ENOENT || code == EACCES ? Kind::kNotFound : Kind::kFailed, 0, "it cannot be started"};
  limit(pid, RLIMIT_AS, limits.max_memory_bytes);
  limit(pid, RLIMIT_CPU,
        static_cast<int64_t>(std::ceil(seconds * std::max(1u, std::thread::hardware_concurrency()))) + 1);
  limit(pid, RLIMIT_FSIZE, 0);
  limit(pid, RLIMIT_CORE, 0);
  output.write.close();
  errors.write.close();

  ProcessEnd end;
  Reading reading;
  try {
    reading = read_all(output.read.get(), errors.read.get(), deadline, limits.gone, &end.errors, on_output);
  } catch (...) {
    kill_and_wait(pid);
    throw;
  }
  if (reading != Reading::kEnded) kill(-pid, SIGKILL);
  bool too_long = reading == Reading::kTooLong;
  const int status = end_of(pid, deadline, &too_long);
  if (reading == Reading::kStopped)
    end.kind = Kind::kStopped;
  else if (too_long)
    end.kind = Kind::kTooLong;
  else if (status >= 0 && WIFEXITED(status))
    end = {Kind::kExited, WEXITSTATUS(status), std::move(end.errors)};
  return end;
}

}  // namespace calandra
