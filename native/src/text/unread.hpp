// What web UIs read in a prompt and latentrt does not: it is text here, and a warning says so.
#pragma once

#include <latentrt/latentrt.h>

#include <string>
#include <string_view>

namespace lrt {

// What of it occurs, what it means and what to do instead; or "".
std::string unread(std::u32string_view prompt, latentrt_prompt_syntax syntax);

}  // namespace lrt
