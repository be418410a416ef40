// Bodies of OpenAI's Responses API as bodies of a chat. Source: OpenAI's API reference; what clients send: specs of
// Codex and of the official libraries.
#pragma once

#include <string>
#include <variant>
#include <vector>

#include "base/error.h"
#include "base/json.h"

namespace calandra::apps {

struct ResponsesChat {
  json::object body;  // of the chat
  json::object echo;  // the fields that a response says again
  json::array turns;  // the conversation without the instructions, which a next response may go on from
  std::vector<std::string> custom_tools;  // names of tools whose input is a text
  bool store = true, background = false;
};

// The chat that the body asks for, behind the turns of an earlier response. Fields that both forms know under one name,
// and those of neither, stay as they are.
std::variant<ResponsesChat, RequestError> chat_of_responses(const json::object& body, json::array earlier);

// Adds items of a conversation as messages of a chat: reasoning, texts and calls that follow each other are one turn of
// the assistant. A fault names `input`.
std::variant<json::array, RequestError> messages_of_items(const json::array& items, json::array to);

// A fault of the chat in the words of the body that it was made of.
RequestError in_words_of_responses(RequestError error);

}  // namespace calandra::apps
