#include "option_table.hpp"

#include "options.gen.hpp"

#include <algorithm>
#include <iterator>
#include <stdexcept>
#include <string>

namespace lrt {

namespace {

bool ends_with(std::string_view text, std::string_view end) {
    return text.size() >= end.size() && text.substr(text.size() - end.size()) == end;
}

std::string_view theirs(const WebUiName* begin, const WebUiName* end, std::string_view ours) {
    const auto* found = std::find_if(begin, end, [&](const WebUiName& each) { return each.ours == ours; });
    return found == end ? std::string_view() : found->theirs;
}

std::string_view sampler_label(std::string_view name) {
    return theirs(std::begin(WEB_UI_SAMPLERS), std::end(WEB_UI_SAMPLERS), name);
}

}  // namespace

const Option* OptionTable::begin() const { return std::begin(OPTIONS); }
const Option* OptionTable::end() const { return std::end(OPTIONS); }

const Option& option_named(std::string_view name) {
    for (const Option& option : OptionTable())
        if (option.name == name) return option;
    throw std::out_of_range("no option " + std::string(name));
}

WebUiSampler to_web_ui(std::string_view name) {
    if (const std::string_view label = sampler_label(name); !label.empty()) return {label, {}};
    // The longest type that fits; the table begins with them.
    for (const WebUiName& type : WEB_UI_TYPES) {
        if (!ends_with(name, type.ours)) continue;
        const std::string_view label = sampler_label(name.substr(0, name.size() - type.ours.size()));
        return label.empty() ? WebUiSampler{} : WebUiSampler{label, type.theirs};
    }
    return {};
}

}  // namespace lrt
