#include "vision/processor_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <string_view>

#include "base/error.h"

namespace calandra {
namespace {

constexpr int kBicubic = 3;  // Pillow's number

// An object of one file, for errors that name file, key and what was found.
class Fields {
 public:
  Fields(const json::value& value, std::string where) : where_(std::move(where)) {
    if (!value.is_object()) throw LoadError(where_ + " is not a JSON object; download the file again");
    object_ = &value.get_object();
  }

  [[noreturn]] void fail(std::string_view key, const std::string& problem) const {
    throw LoadError(fmt::format("{}: {} {}", where_, key, problem));
  }
  // Null when absent or null.
  const json::value* find(std::string_view key) const {
    const json::value* value = object_->if_contains(key);
    return value && !value->is_null() ? value : nullptr;
  }
  const json::value& required(std::string_view key) const {
    const json::value* value = find(key);
    if (!value) fail(key, "is missing; images cannot be prepared without it");
    return *value;
  }
  int64_t integer(std::string_view key, int64_t min, int64_t max) const {
    const json::value& value = required(key);
    if (!value.is_int64()) fail(key, "must be an integer, found " + shown(value));
    const int64_t n = value.get_int64();
    if (n < min || n > max) fail(key, fmt::format("must lie in [{}, {}], found {}", min, max, n));
    return n;
  }
  double number(std::string_view key, const json::value& value, double min, double max) const {
    if (!value.is_number()) fail(key, "must be a number, found " + shown(value));
    const double x = value.to_number<double>();
    if (!(x >= min && x <= max)) fail(key, fmt::format("must lie in [{}, {}], found {}", min, max, x));
    return x;
  }
  bool boolean(std::string_view key, bool fallback) const {
    const json::value* value = find(key);
    if (!value) return fallback;
    if (!value->is_bool()) fail(key, "must be true or false, found " + shown(*value));
    return value->get_bool();
  }
  // A step that Qwen vision models always or never take.
  void expect(std::string_view key, bool expected) const {
    if (boolean(key, expected) != expected) fail(key, fmt::format("is {}; only {} is supported", !expected, expected));
  }
  // [3] numbers; a single one stands for three.
  std::array<double, 3> channels(std::string_view key, double min, double max) const {
    const json::value& value = required(key);
    std::array<double, 3> out;
    if (value.is_number()) {
      out.fill(number(key, value, min, max));
    } else if (value.is_array() && value.get_array().size() == 3) {
      for (size_t c = 0; c < 3; ++c) out[c] = number(key, value.get_array()[c], min, max);
    } else {
      fail(key, "must be a list of 3 numbers, found " + shown(value));
    }
    return out;
  }
  Fields child(std::string_view key) const { return Fields(required(key), where_ + " " + std::string(key)); }

 private:
  static std::string shown(const json::value& value) {
    std::string text = to_json(value);
    constexpr size_t kMost = 80;
    if (text.size() > kMost) text = text.substr(0, kMost) + "...";
    return text;
  }

  const json::object* object_ = nullptr;
  std::string where_;
};

// size.shortest_edge and size.longest_edge, or the older min_pixels and max_pixels, which win where both stand.
void read_bounds(const Fields& fields, PatchConfig* config) {
  const auto bound = [&](std::string_view old_key, std::string_view key) {
    return fields.find(old_key) ? fields.integer(old_key, 1, kMaxProcessorPixels)
                                : fields.child("size").integer(key, 1, kMaxProcessorPixels);
  };
  config->min_pixels = bound("min_pixels", "shortest_edge");
  config->max_pixels = bound("max_pixels", "longest_edge");
  if (config->min_pixels > config->max_pixels)
    fields.fail("size", fmt::format("has a smallest area of {} above the largest of {} pixels", config->min_pixels,
                                    config->max_pixels));
  const int64_t factor = config->patch_size * config->merge_size;
  if (config->max_pixels < factor * factor)
    fields.fail("size", fmt::format("allows {} pixels; one token needs {} x {}", config->max_pixels, factor, factor));
}

void read_patches(const Fields& fields, PatchConfig* config) {
  for (const std::string_view key : {"do_resize", "do_rescale", "do_normalize", "do_convert_rgb"})
    fields.expect(key, true);
  for (const std::string_view key : {"do_center_crop", "do_pad"}) fields.expect(key, false);
  if (fields.find("resample") && fields.integer("resample", 0, 5) != kBicubic)
    fields.fail("resample", "must be 3 (bicubic); other filters are not supported");
  config->patch_size = fields.integer("patch_size", 1, 256);
  config->temporal_patch_size = fields.integer("temporal_patch_size", 1, 16);
  config->merge_size = fields.integer("merge_size", 1, 16);
  read_bounds(fields, config);
  if (const json::value* factor = fields.find("rescale_factor"))
    config->rescale_factor = fields.number("rescale_factor", *factor, 1e-9, 1e9);
  config->image_mean = fields.channels("image_mean", -1e9, 1e9);
  config->image_std = fields.channels("image_std", 1e-9, 1e9);
}

}  // namespace

ImageProcessorConfig parse_image_processor_config(const json::value& text, const std::string& where) {
  ImageProcessorConfig config;
  read_patches(Fields(text, where), &config);
  return config;
}

VideoProcessorConfig parse_video_processor_config(const json::value& text, const std::string& where) {
  const Fields fields(text, where);
  VideoProcessorConfig config;
  read_patches(fields, &config);
  constexpr int64_t kMostFrames = 1 << 16;
  config.do_sample_frames = fields.boolean("do_sample_frames", config.do_sample_frames);
  config.cap_pixels_per_frame = fields.boolean("cap_pixels_per_frame", config.cap_pixels_per_frame);
  if (fields.find("min_frames")) config.min_frames = fields.integer("min_frames", 1, kMostFrames);
  if (fields.find("max_frames")) config.max_frames = fields.integer("max_frames", 1, kMostFrames);
  if (config.min_frames > config.max_frames)
    fields.fail("min_frames", fmt::format("is {}, above max_frames {}", config.min_frames, config.max_frames));
  if (const json::value* fps = fields.find("fps")) config.fps = fields.number("fps", *fps, 1e-3, 1e3);
  if (fields.find("num_frames")) {
    if (fields.find("fps")) fields.fail("num_frames", "cannot stand beside fps: they exclude each other");
    config.num_frames = fields.integer("num_frames", 1, kMostFrames);
  }
  return config;
}

ImageProcessorConfig read_image_processor_config(const std::filesystem::path& file) {
  return parse_image_processor_config(read_json_file(file, 1 << 20), file.string());
}

VideoProcessorConfig read_video_processor_config(const std::filesystem::path& file) {
  return parse_video_processor_config(read_json_file(file, 1 << 20), file.string());
}

}  // namespace calandra
