#include "net/local_file.h"

#include <gtest/gtest.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include <cerrno>
#include <cstddef>
#include <cstdio>
#include <fstream>

namespace calandra::net {
namespace {

namespace fs = std::filesystem;

class LocalFile : public ::testing::Test {
 protected:
  LocalFile() {
    std::string pattern = (fs::temp_directory_path() / "calandra_local_XXXXXX").string();
    top_ = mkdtemp(pattern.data());
    top_ = fs::canonical(top_);
    fs::create_directories(top_ / "media/inner");
    write(top_ / "media/a b.png", "inside");
    write(top_ / "media/inner/c", "deeper");
    write(top_ / "secret", "secret");
    fs::create_directory(top_ / "media-other");
    write(top_ / "media-other/x", "secret");
    fs::create_symlink("inner/c", top_ / "media/link");
    fs::create_symlink("../secret", top_ / "media/escape");
    fs::create_symlink(top_ / "secret", top_ / "media/absolute");
    fs::create_directory_symlink("..", top_ / "media/up");
    mkfifo((top_ / "media/pipe").c_str(), 0600);
  }
  ~LocalFile() override { fs::remove_all(top_); }
  static void write(const fs::path& file, const std::string& text) { std::ofstream(file) << text; }
  static std::string content(const LocalFolder& folder, const std::string& url) {
    const auto result = folder.read(url, 10);
    const auto* error = std::get_if<RequestError>(&result);
    return error != nullptr ? error->code : std::get<std::string>(result);
  }

  fs::path top_;
};

TEST_F(LocalFile, OnlyOfTheFolder) {
  const LocalFolder folder("--x", top_ / "media");
  const std::string media = "file://" + (top_ / "media").string();
  EXPECT_EQ(content(folder, media + "/a%20b.png"), "inside");
  EXPECT_EQ(content(folder, media + "/inner/c"), "deeper");
  EXPECT_EQ(content(folder, media + "/inner/../link"), "deeper");
  for (const char* rest :
       {"", "/", "/none", "/inner", "/escape", "/absolute", "/up/secret", "/../secret", "/inner/../../secret",
        "/%2e%2e/secret", "-other/x", "/pipe", "/a%00b", "/a%2", "/a%zz", "/inner/c?x", "/inner/c#x", "//etc/passwd"})
    EXPECT_EQ(content(folder, media + rest), "invalid_url") << rest;
  for (const std::string url : {"file:///etc/passwd", "file:///proc/self/environ", "file://localhost/etc/passwd",
                                "file:", "file:a", "FILE:///etc/passwd", "/etc/passwd"})
    EXPECT_EQ(content(folder, url), "invalid_url") << url;
  write(top_ / "media/large", "12345678901");
  EXPECT_EQ(content(folder, media + "/large"), "file_too_large");
}

TEST_F(LocalFile, NoneByDefault) {
  EXPECT_EQ(content({}, "file://" + (top_ / "media/inner/c").string()), "invalid_url");
  EXPECT_THROW(LocalFolder("--x", top_ / "secret"), UsageError);
  EXPECT_THROW(LocalFolder("--x", top_ / "none"), UsageError);
}

// From now on openat2 fails in this process as on a kernel without it.
void lose_openat2(int error) {
  sock_filter steps[] = {BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
                         BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_openat2, 0, 1),
                         BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | static_cast<uint32_t>(error)),
                         BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
  const sock_fprog program{std::size(steps), steps};
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0 || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) != 0)
    std::exit(3);
}

TEST_F(LocalFile, AKernelWithoutTheRuleIsToldAtTheStart) {
  for (const int error : {ENOSYS, EPERM})  // EPERM: older sandboxes
    EXPECT_EXIT(
        {
          lose_openat2(error);
          try {
            const LocalFolder folder("--x", top_ / "media");
          } catch (const UsageError& told) {
            std::fputs(told.what(), stderr);
            std::exit(7);
          }
          std::exit(0);
        },
        ::testing::ExitedWithCode(7), "--x: this kernel.*openat2.*Linux 5.6");
}

TEST_F(LocalFile, AProcessWithoutFreeFilesSaysSo) {
  const LocalFolder folder("--x", top_ / "media");
  rlimit usual{};
  getrlimit(RLIMIT_NOFILE, &usual);
  const rlimit none{0, usual.rlim_max};
  setrlimit(RLIMIT_NOFILE, &none);
  const std::string got = content(folder, "file://" + (top_ / "media/inner/c").string());
  setrlimit(RLIMIT_NOFILE, &usual);
  EXPECT_EQ(got, "service_unavailable");
}

}  // namespace
}  // namespace calandra::net
