#include "net/local_file.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

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

}  // namespace
}  // namespace calandra::net
