#include "apps/api/chat_messages.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>
#include <string>
#include <string_view>

#include "apps/api/body_fields.h"

namespace calandra::apps {
namespace {

RequestError wrong(std::string message, const char* code = "invalid_type") {
  return {400, code, "messages", "messages " + std::move(message)};
}

constexpr std::string_view kMediaKeys[] = {"image_url", "video_url", "image", "video", "url"};

// What kind of part it is: its type, or with vLLM's short form the one key that it has.
std::string_view kind_of(const json::object& part) {
  const json::value* type = find_field(part, "type");
  if (type != nullptr) return type->is_string() ? std::string_view(type->get_string()) : std::string_view();
  for (const std::string_view key : {"text", "image_url", "video_url"})
    if (find_field(part, key) != nullptr) return key;
  return {};
}

bool is_image(std::string_view kind) { return kind == "image_url" || kind == "input_image" || kind == "image"; }
bool is_video(std::string_view kind) { return kind == "video_url" || kind == "input_video" || kind == "video"; }

// The URL of a picture part, or what is wrong with it.
std::variant<std::string, RequestError> url_of(const json::object& part, std::string_view kind) {
  for (const std::string_view key : kMediaKeys) {
    const json::value* value = find_field(part, key);
    if (value == nullptr) continue;
    if (const json::object* inner = value->if_object()) value = find_field(*inner, "url");
    if (value != nullptr && value->is_string()) return std::string(value->get_string());
    return wrong(fmt::format("have a part of the type {} whose {} is no URL", kind, key));
  }
  return wrong(fmt::format("have a part of the type {} without a URL: data:image/png;base64,…", kind));
}

// The content of a message, for a template: a text, or a list when it shows pictures, which are added to `media`.
std::variant<json::value, RequestError> content_of(const json::object& message, std::vector<MediaPart>& media) {
  const json::value* content = find_field(message, "content");
  if (content == nullptr) return json::value(json::string());
  if (content->is_string()) return json::value(content->get_string());
  if (!content->is_array()) return wrong("must have a text or a list of parts as content");
  json::array items;
  std::string text;
  const size_t before = media.size();
  for (const json::value& value : content->get_array()) {
    if (value.is_string()) {
      text += value.get_string();
      items.push_back(json::object{{"type", "text"}, {"text", value}});
      continue;
    }
    const json::object* part = value.if_object();
    const std::string_view kind = part == nullptr ? std::string_view() : kind_of(*part);
    if (kind.empty()) return wrong("must have parts with a type as content");
    if (kind == "text" || kind == "input_text" || kind == "output_text") {
      const json::value* words = find_field(*part, "text");
      if (words == nullptr || !words->is_string()) return wrong("have a part without text");
      text += words->get_string();
      items.push_back(json::object{{"type", "text"}, {"text", *words}});
      continue;
    }
    if (!is_image(kind) && !is_video(kind))
      return wrong("may have parts of text, images and videos only; found " + to_json(json::string(kind)),
                   "unsupported_parameter");
    auto url = url_of(*part, kind);
    if (auto* error = std::get_if<RequestError>(&url)) return std::move(*error);
    media.push_back({is_video(kind), std::get<std::string>(std::move(url))});
    items.push_back(json::object{{"type", is_video(kind) ? "video" : "image"}});
  }
  if (media.size() == before) return json::value(json::string(text));
  return json::value(std::move(items));
}

constexpr size_t kMostValues = size_t{512} << 10;  // of the arguments of all calls: they are JSON in texts

// Makes arguments of calls JSON objects: templates go through their members. A call without a name is refused.
std::optional<RequestError> read_calls(json::array& calls, size_t& values_left) {
  for (json::value& call : calls) {
    json::object* function = call.if_object();
    if (function != nullptr)
      if (json::value* inner = function->if_contains("function"); inner != nullptr && inner->is_object())
        function = &inner->get_object();
    const json::value* name = function == nullptr ? nullptr : find_field(*function, "name");
    if (name == nullptr || !name->is_string()) return wrong("must have tool_calls with the name of a function");
    json::value* arguments = function->if_contains("arguments");
    if (arguments == nullptr || arguments->is_object()) continue;
    json::object read;
    if (arguments->is_string() && !arguments->get_string().empty()) {
      try {
        json::value parsed = parse_json(arguments->get_string(), "arguments", values_left);
        if (parsed.is_object()) {
          *arguments = std::move(parsed);
          continue;
        }
      } catch (const LoadError&) {  // a model wrote it, or it is too much: the next turn goes on with its text
      }
      read["arguments"] = json::value(*arguments);
    }
    *arguments = std::move(read);
  }
  return std::nullopt;
}

bool is_role(std::string_view role) { return role == "user" || role == "assistant" || role == "tool"; }

}  // namespace

std::variant<ChatMessages, RequestError> chat_messages(const json::array& messages) {
  ChatMessages result;
  size_t values_left = kMostValues;
  json::array& read = result.messages;
  std::optional<std::string> system;
  for (const json::value& value : messages) {
    const json::object* given = value.if_object();
    if (given == nullptr) return wrong("must be a list of objects");
    const json::value* role = find_field(*given, "role");
    if (role == nullptr || !role->is_string()) return wrong("must each have a role");
    if (const json::value* name = find_field(*given, "name"); name != nullptr && !name->is_string())
      return wrong("may have a name, which must be a string");
    const size_t pictures = result.media.size();
    auto content_read = content_of(*given, result.media);
    if (auto* error = std::get_if<RequestError>(&content_read)) return std::move(*error);
    json::value& shown = std::get<json::value>(content_read);
    if (*role == "system" || *role == "developer") {
      if (result.media.size() > pictures) return wrong("of the system show a picture; a user's can", "invalid_value");
      const std::string content(shown.get_string());
      system = system && !content.empty() ? *system + "\n\n" + content : system.value_or(content);
      continue;
    }
    if (!is_role(role->get_string()))
      return wrong("may have the roles system, developer, user, assistant and tool", "invalid_value");
    json::object message = *given;
    message["content"] = std::move(shown);
    if (const json::value* calls = find_field(message, "tool_calls"); calls != nullptr && !calls->is_array())
      return wrong("must have a list as tool_calls");
    if (find_field(message, "tool_calls") == nullptr)
      message.erase("tool_calls");
    else if (auto error = read_calls(message["tool_calls"].get_array(), values_left))
      return *std::move(error);
    if (const json::value* reasoning = find_field(message, "reasoning");
        reasoning != nullptr && !message.contains("reasoning_content"))
      message["reasoning_content"] = json::value(*reasoning);
    read.push_back(std::move(message));
  }
  if (system) read.insert(read.begin(), json::object{{"role", "system"}, {"content", *system}});
  return result;
}

bool may_have_media(const json::value& body) {
  if (const json::array* list = body.if_array()) return std::any_of(list->begin(), list->end(), may_have_media);
  const json::object* object = body.if_object();
  if (object == nullptr) return false;
  const std::string_view kind = kind_of(*object);
  return is_image(kind) || is_video(kind) ||
         std::any_of(object->begin(), object->end(), [](const auto& member) { return may_have_media(member.value()); });
}

}  // namespace calandra::apps
