// Sampling rules, and video files through stand-ins for ffprobe and ffmpeg: shell scripts on PATH. The last test takes
// the programs themselves where there are any.
#include "vision/video.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <thread>

#include "base/log.h"
#include "vision/subprocess.h"

namespace calandra {
namespace {

namespace fs = std::filesystem;

Image even_image(int64_t height, int64_t width, uint8_t level) {
  return {height, width, std::vector<uint8_t>(height * width * 3, level)};
}

std::variant<PreparedVideo, RequestError> prepare(const std::vector<Image>& frames, std::optional<double> fps,
                                                  const VideoProcessorConfig& config) {
  return preprocess_frames(
      std::ssize(frames), [&](int64_t i) { return frames[i]; }, fps, config);
}

TEST(SampleFrames, CountsAndBounds) {
  VideoProcessorConfig config;
  EXPECT_EQ(sample_frames(1, 24, config), (std::vector<int64_t>{0}));
  EXPECT_EQ(sample_frames(100, 1e-300, config).size(), 100u);  // "every frame", not an overflow
  EXPECT_EQ(sample_frames(100, 1e300, config).size(), 4u);
  config.num_frames = 6;
  EXPECT_EQ(sample_frames(3, 24, config), (std::vector<int64_t>{0, 0, 1, 1, 2, 2}));
  config.num_frames.reset();
  config.do_sample_frames = false;
  EXPECT_EQ(sample_frames(50, 24, config).size(), 50u);
  EXPECT_TRUE(sample_frames(kMaxTakenFrames + 1, 24, config).empty());
}

TEST(SampleFrames, CappedFrames) {
  VideoProcessorConfig config;
  config.min_pixels = 4096;
  config.max_pixels = 25'165'824;
  EXPECT_EQ(std::get<ImageSize>(video_frame_size({1080, 1920}, 4, config)), (ImageSize{1088, 1920}));
  config.cap_pixels_per_frame = true;
  const auto [height, width] = std::get<ImageSize>(video_frame_size({1080, 1920}, 4, config));
  EXPECT_EQ(height, 640);  // 768 tokens' worth of pixels at most
  EXPECT_EQ(width, 1152);
}

TEST(Frames, PaddedAndResized) {
  VideoProcessorConfig config;
  config.min_pixels = 4096;
  std::vector<Image> frames;
  for (int i = 0; i < 5; ++i) frames.push_back(even_image(64, 96, static_cast<uint8_t>(i * 50)));
  const auto video = std::get<PreparedVideo>(prepare(frames, 2.0, config));
  EXPECT_EQ(video.frame_indices, (std::vector<int64_t>{0, 1, 2, 3, 4}));
  EXPECT_EQ(video.seconds, (std::vector<double>{0.25, 1.25, 2.0}));
  EXPECT_EQ(video.patches.grid, (PatchGrid{3, 4, 6}));
  EXPECT_EQ(std::get<PreparedVideo>(prepare(frames, {}, config)).fps, kUnknownFps);
}

TEST(Frames, Errors) {
  const VideoProcessorConfig config;
  const auto error = [&](const std::vector<Image>& frames, double fps) {
    return std::get<RequestError>(prepare(frames, fps, config)).message;
  };
  EXPECT_EQ(error({}, 24), "the video has no frames");
  EXPECT_EQ(error({even_image(8, 8, 0)}, 24), "the video has 1 frames; at least 2 are needed");
  EXPECT_EQ(error({even_image(8, 8, 0), even_image(8, 9, 0)}, 24),
            "frame 1 of the video has 9 x 8 pixels, the first one 8 x 8");
  EXPECT_EQ(error({even_image(8, 8, 0)}, 0), "the video has 0 frames per second");
  EXPECT_EQ(error({even_image(8, 8, 0)}, -1), "the video has -1 frames per second");
}

TEST(Frames, OnlyThoseThatAreTakenAreRead) {
  const VideoProcessorConfig config;
  std::vector<int64_t> read;
  const auto frame = [&](int64_t i) -> std::variant<Image, RequestError> {
    read.push_back(i);
    if (i > 1000) return RequestError{400, "invalid_image", "", "broken"};
    return even_image(8, 8, 0);
  };
  const auto video = std::get<PreparedVideo>(preprocess_frames(1000, frame, 100.0, config));
  EXPECT_EQ(video.frame_indices.size(), 20u);
  EXPECT_EQ(read, video.frame_indices);
  EXPECT_EQ(std::get<RequestError>(preprocess_frames(2000, frame, 100.0, config)).message, "broken");
  VideoProcessorConfig twice;
  twice.num_frames = 4;
  read.clear();
  EXPECT_EQ(std::get<PreparedVideo>(preprocess_frames(2, frame, 100.0, twice)).patches.grid.t, 2);
  EXPECT_EQ(read, (std::vector<int64_t>{0, 1}));
}

// A folder that is the only one on PATH, with programs written by the test.
class ProgramsOnPath : public testing::Test {
 protected:
  void SetUp() override {
    set_log_level(LogLevel::kOff);
    std::string name = (fs::temp_directory_path() / "calandra_XXXXXX").string();
    folder_ = mkdtemp(name.data());
    path_ = getenv("PATH");
    setenv("PATH", folder_.c_str(), 1);
    std::ofstream(folder_ / "clip.mp4") << "a video";
  }
  void TearDown() override {
    setenv("PATH", path_.c_str(), 1);
    set_log_level(LogLevel::kInfo);
    fs::remove_all(folder_);
  }
  void program(const std::string& name, const std::string& script) {
    // Written under another name: a file still open for writing in a child of another test could not be run.
    std::ofstream(folder_ / (name + ".new")) << "#!/bin/sh\n" << script;
    fs::permissions(folder_ / (name + ".new"), fs::perms::owner_all);
    fs::rename(folder_ / (name + ".new"), folder_ / name);
  }
  // An ffprobe that answers with one stream, whatever it is asked, as long as it is asked with the usual limits.
  void probe_says(const std::string& stream) {
    program("ffprobe", wants("-protocol_whitelist file -format_whitelist ") + "cat <<'END'\n{\"streams\": [" + stream +
                           "]}\nEND\n");
  }
  // Lines of a program that end it when its arguments do not hold these words. (It may not write them to a file.)
  static std::string wants(const std::string& words) {
    return "case \" $* \" in *'" + words + "'*) ;; *) echo without '" + words + "' >&2; exit 9 ;; esac\n";
  }

  std::variant<PreparedVideo, RequestError> read(VideoFileLimits limits = {}) const {
    VideoProcessorConfig config;
    config.min_pixels = 1024;
    return preprocess_video_file(folder_ / "clip.mp4", config, limits);
  }
  std::string error(VideoFileLimits limits = {}) const {
    const auto result = read(limits);
    const auto* found = std::get_if<RequestError>(&result);
    return found ? found->code + ": " + found->message : "";
  }

  fs::path folder_;
  std::string path_;
};

// RGB bytes of one frame of 4 x 2 pixels, as printf's octal escapes.
std::string frame_bytes(int level) {
  std::string text;
  for (int i = 0; i < 24; ++i) text += fmt::format("\\{:03o}", level);
  return text;
}

constexpr const char* kStream =
    R"({"width": 4, "height": 2, "avg_frame_rate": "8/1", "nb_read_packets": "8", "nb_read_frames": "7"})";

TEST_F(ProgramsOnPath, FramesOfAFile) {
  probe_says(kStream);
  program("ffmpeg", wants(" -protocol_whitelist file -format_whitelist ") +
                        wants(" -i file:" + (folder_ / "clip.mp4").string() + " ") +
                        wants(" select=((eq(n\\,0)+eq(n\\,2))+(eq(n\\,5)+eq(n\\,7))),scale=4:2 ") +
                        wants(" -frames:v 4 ") + wants(" -f rawvideo -pix_fmt rgb24 ") + "printf '" + frame_bytes(10) +
                        frame_bytes(20) + frame_bytes(30) + frame_bytes(40) + "'\n");
  const auto result = read();
  ASSERT_TRUE(std::holds_alternative<PreparedVideo>(result)) << std::get<RequestError>(result).message;
  const auto& video = std::get<PreparedVideo>(result);
  EXPECT_EQ(video.fps, 8);
  EXPECT_EQ(video.frame_indices, (std::vector<int64_t>{0, 2, 5, 7}));
  EXPECT_EQ(video.seconds, (std::vector<double>{0.125, 0.75}));
  EXPECT_EQ(video.patches.grid, (PatchGrid{2, 2, 4}));  // 32 x 64: a side below 32 is enlarged
  EXPECT_FLOAT_EQ(video.patches.values.front(), (10 - 127.5f) / 127.5f);
  EXPECT_FLOAT_EQ(video.patches.values.back(), (40 - 127.5f) / 127.5f);
}

TEST_F(ProgramsOnPath, TurnedVideo) {
  probe_says(R"({"width": 4, "height": 2, "nb_read_packets": "2", "side_data_list": [{"rotation": -90}]})");
  program("ffmpeg", "printf '" + frame_bytes(10) + frame_bytes(20) + "'\n");
  const auto result = read();
  ASSERT_TRUE(std::holds_alternative<PreparedVideo>(result));
  EXPECT_EQ(std::get<PreparedVideo>(result).patches.grid, (PatchGrid{1, 4, 2}));
  EXPECT_EQ(std::get<PreparedVideo>(result).fps, kUnknownFps);
}

TEST_F(ProgramsOnPath, CountsAgainWhenPacketsWereTooMany) {
  probe_says(kStream);  // 8 packets, 7 frames
  // Three frames at first, then the four of the exact count.
  program("ffmpeg", "printf '" + frame_bytes(1) + frame_bytes(2) + frame_bytes(3) +
                        "'\ncase \"$*\" in *'eq(n\\,6)'*) printf '" + frame_bytes(4) + "';; esac\n");
  const auto result = read();
  ASSERT_TRUE(std::holds_alternative<PreparedVideo>(result)) << std::get<RequestError>(result).message;
  EXPECT_EQ(std::get<PreparedVideo>(result).frame_indices.back(), 6);
  program("ffmpeg", "printf '" + frame_bytes(1) + "'\n");
  EXPECT_EQ(error(), "invalid_video: ffmpeg gave fewer frames than the video says it has");
}

TEST_F(ProgramsOnPath, EndsWhenNobodyNeedsItAnyMore) {
  program("ffprobe", "exec sleep 1000\n");
  int asked = 0;
  VideoFileLimits limits;
  limits.seconds = 1e5;
  limits.gone = [&] { return ++asked > 2; };
  EXPECT_EQ(error(limits), "invalid_video: reading the video was given up");
}

TEST_F(ProgramsOnPath, RateOfItsDuration) {
  // As Ogg files have it.
  probe_says(R"({"width": 4, "height": 2, "avg_frame_rate": "0/0", "duration": "0.5", "nb_read_packets": "2"})");
  program("ffmpeg", "printf '" + frame_bytes(10) + frame_bytes(20) + "'\n");
  const auto result = read();
  ASSERT_TRUE(std::holds_alternative<PreparedVideo>(result)) << std::get<RequestError>(result).message;
  EXPECT_EQ(std::get<PreparedVideo>(result).fps, 4);
}

TEST_F(ProgramsOnPath, ManyFrames) {
  probe_says(R"({"width": 4, "height": 2, "avg_frame_rate": "10/1", "nb_read_packets": "2000"})");
  // Like ffmpeg, which takes 100 terms at most, it wants no three of them side by side.
  program("ffmpeg", "if echo \"$*\" | grep -Eq 'eq\\(n\\\\,[0-9]+\\)\\+eq\\(n\\\\,[0-9]+\\)\\+eq'; then exit 9; fi\n" +
                        wants(" -frames:v 400 ") + "head -c 9600 /dev/zero\n");
  auto result = read();
  ASSERT_TRUE(std::holds_alternative<PreparedVideo>(result)) << std::get<RequestError>(result).message;
  EXPECT_EQ(std::get<PreparedVideo>(result).patches.grid.t, 200);

  // Every frame: one run of them, however many.
  VideoProcessorConfig config;
  config.min_pixels = 1024;
  config.do_sample_frames = false;
  probe_says(R"({"width": 4, "height": 2, "avg_frame_rate": "10/1", "nb_read_packets": "20000"})");
  program("ffmpeg", wants(" select=between(n\\,0\\,19999),scale=4:2 ") + "head -c 480000 /dev/zero\n");
  result = preprocess_video_file(folder_ / "clip.mp4", config);
  ASSERT_TRUE(std::holds_alternative<PreparedVideo>(result)) << std::get<RequestError>(result).message;
  EXPECT_EQ(std::get<PreparedVideo>(result).patches.grid.t, 10'000);

  // More than fit into an argument.
  config.do_sample_frames = true;
  config.num_frames = 20'000;
  probe_says(R"({"width": 4, "height": 2, "avg_frame_rate": "10/1", "nb_read_packets": "90000"})");
  EXPECT_EQ(std::get<RequestError>(preprocess_video_file(folder_ / "clip.mp4", config)).message,
            "20000 frames all over the video are to be taken, more than ffmpeg can be told");
}

TEST_F(ProgramsOnPath, WordsOfAFileAreOneLine) {
  set_log_level(LogLevel::kWarning);
  program("ffprobe", "printf 'a \\033[31mtitle\\r\\n' >&2\nexit 1\n");
  testing::internal::CaptureStderr();
  EXPECT_EQ(error(), "invalid_video: ffprobe cannot read the video");
  const std::string log = testing::internal::GetCapturedStderr();
  EXPECT_NE(log.find("ffprobe failed (status 1): a  [31mtitle"), std::string::npos) << log;
}

TEST_F(ProgramsOnPath, GoneWhenTheReaderThrows) {
  program("endless", "echo $$\nexec sleep 1000\n");
  pid_t pid = 0;
  EXPECT_THROW(run_process({"endless"}, {.seconds = 60},
                           [&](std::string_view bytes) -> bool {
                             pid = std::stoi(std::string(bytes));
                             throw std::bad_alloc();
                           }),
               std::bad_alloc);
  EXPECT_EQ(kill(pid, 0), -1) << "it runs, or nobody waited for it";
}

TEST_F(ProgramsOnPath, Errors) {
  const std::string advice =
      " of ffmpeg, which is not installed here; install ffmpeg or give the video as a folder of images";
  EXPECT_EQ(error(), "ffmpeg_missing: reading a video file needs the program ffprobe" + advice);
  probe_says(kStream);
  EXPECT_EQ(error(), "ffmpeg_missing: reading a video file needs the program ffmpeg" + advice);
  program("ffmpeg", "echo broken >&2\nexit 1\n");
  EXPECT_EQ(error(), "invalid_video: ffmpeg cannot read the video");
  program("ffmpeg", "while :; do printf '" + frame_bytes(0) + "'; done\n");
  EXPECT_EQ(error(), "invalid_video: ffmpeg gave more output than the video's size allows");
  program("ffmpeg", "exec sleep 1000\n");
  EXPECT_EQ(error({.seconds = 0.3}), "invalid_video: ffmpeg did not finish reading the video in 0.3 seconds");
  EXPECT_EQ(error({.frame = {.max_pixels = 7}}),
            "image_too_large: the image has 4 x 2 = 8 pixels; at most 7 are accepted");
  for (const char* stream : {"", "1", R"({"width": 4, "height": 2, "nb_read_packets": "0"})"}) {
    probe_says(stream);
    EXPECT_EQ(error(), "invalid_video: the file holds no video");
  }
  probe_says(R"({"width": 0, "height": 2, "nb_read_packets": "5"})");
  EXPECT_EQ(error(), "invalid_image: the image has no pixels: 0 x 2");
  program("ffprobe", "echo nonsense\n");
  EXPECT_EQ(error(), "invalid_video: the file holds no video");
  program("ffprobe", "while :; do echo nonsense; done\n");
  EXPECT_EQ(error(), "invalid_video: ffprobe gave more output than the video's size allows");
  fs::remove(folder_ / "clip.mp4");
  EXPECT_EQ(error(), "invalid_video: the video file cannot be read");
}

TEST_F(ProgramsOnPath, ProcessIsShutIn) {
  // Environment, standard input, other descriptors, files: what the program may see.
  program("look", "env\ncat\nls /proc/self/fd | wc -l\n(echo x > '" + (folder_ / "written").string() +
                      "') 2>/dev/null || echo no file\necho to errors >&2\nexit 3\n");
  setenv("CALANDRA_SECRET", "secret", 1);
  const int open_file = open("/dev/null", O_RDONLY);  // without close-on-exec
  std::string output;
  const ProcessEnd end = run_process({"look"}, {.seconds = 60}, [&](std::string_view bytes) {
    output += bytes;
    return true;
  });
  close(open_file);
  unsetenv("CALANDRA_SECRET");
  EXPECT_EQ(end.kind, ProcessEnd::Kind::kExited);
  EXPECT_EQ(end.status, 3);
  EXPECT_NE(end.errors.find("to errors"), std::string::npos);
  EXPECT_EQ(output.find("secret"), std::string::npos);
  EXPECT_NE(output.find("LC_ALL=C\n"), std::string::npos);
  EXPECT_NE(output.find("\n4\n"), std::string::npos) << output;  // 0, 1, 2 and the listing's own
  EXPECT_TRUE(!fs::exists(folder_ / "written") || fs::file_size(folder_ / "written") == 0);
}

TEST_F(ProgramsOnPath, ChildrenGoWithTheProgram) {
  program("parent", "sleep 1000 >/dev/null 2>&1 &\necho $!\n");
  std::string output;
  const ProcessEnd end = run_process({"parent"}, {.seconds = 60}, [&](std::string_view bytes) {
    output += bytes;
    return true;
  });
  EXPECT_EQ(end.kind, ProcessEnd::Kind::kExited);
  const pid_t child = std::stoi(output);
  // Killed at once, but its new parent may need a moment to take it away: a zombie counts as gone.
  const auto gone = [&] {
    std::ifstream stat(fmt::format("/proc/{}/stat", child));
    std::string text((std::istreambuf_iterator<char>(stat)), {});
    return text.empty() || text.find(") Z") != std::string::npos;
  };
  for (int round = 0; round < 5000 && !gone(); ++round) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  EXPECT_TRUE(gone());
}

// The programs themselves, where they are installed: a minute of grey that gets lighter, four frames per second.
TEST(RealFfmpeg, AMinute) {
  const ProcessEnd found = run_process({"ffmpeg", "-version"}, {}, [](std::string_view) { return true; });
  if (found.kind == ProcessEnd::Kind::kNotFound) GTEST_SKIP() << "skipped: ffmpeg is not installed";
  const fs::path folder = fs::temp_directory_path() / fmt::format("calandra_real_{}", getpid());
  fs::create_directory(folder);
  const fs::path file = folder / "it's [a], 50%: x;.avi";
  // run_process lets no program write files.
  std::ofstream out(file, std::ios::binary);
  const ProcessEnd made = run_process(
      {"ffmpeg", "-v", "error", "-f", "lavfi", "-i", "color=size=64x64:rate=4:duration=60,format=gray,geq=lum=N",
       "-pix_fmt", "gray", "-c:v", "rawvideo", "-f", "avi", "pipe:1"},
      {}, [&](std::string_view bytes) { return bool(out << bytes); });
  out.close();
  ASSERT_EQ(made.status, 0) << made.errors;
  VideoProcessorConfig config;
  config.min_pixels = 64 * 64;
  const auto result = preprocess_video_file(file, config);
  fs::remove_all(folder);
  ASSERT_TRUE(std::holds_alternative<PreparedVideo>(result)) << std::get<RequestError>(result).message;
  const auto& video = std::get<PreparedVideo>(result);
  EXPECT_EQ(video.fps, 4);
  ASSERT_EQ(video.frame_indices.size(), 120u);
  ASSERT_EQ(video.patches.grid, (PatchGrid{60, 4, 4}));
  // Each frame's first value against its number, which is its level: every frame is the one that was asked for.
  const int64_t frame = config.patch_size * config.patch_size, row = config.patch_values();
  for (int64_t t = 0; t < 60; ++t)
    for (int64_t f = 0; f < 2; ++f)
      EXPECT_NEAR(video.patches.values[t * 16 * row + f * frame] * 127.5f + 127.5f,
                  static_cast<float>(video.frame_indices[2 * t + f]), 0.6f);
}

}  // namespace
}  // namespace calandra
