// What a tokenizer.json must say to be that of a CLIP tokenizer.
#pragma once

#include "../base/json.hpp"

#include <string>

namespace lrt {

// A value for a message.
std::string written(const Json& json);

// Of a whole document, the vocabulary and the merges apart. Throws std::runtime_error with what differs.
void require_clip(const Json& content);

// Of a member of added_tokens.
void require_added_token(const Json& token);

// Whether its pre-tokenizer finds <|startoftext|> and <|endoftext|>, as newer ones do.
bool knows_special_words(const Json& content);

}  // namespace lrt
