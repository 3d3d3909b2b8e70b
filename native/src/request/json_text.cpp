#include "json_text.hpp"

#include "../base/numbers.hpp"

#include <vector>

namespace lrt {

namespace {

void append_escaped(std::string& text, char byte) {
    switch (byte) {
        case '"': text += "\\\""; return;
        case '\\': text += "\\\\"; return;
        case '\n': text += "\\n"; return;
        case '\r': text += "\\r"; return;
        case '\t': text += "\\t"; return;
        case '\b': text += "\\b"; return;
        case '\f': text += "\\f"; return;
        default: break;
    }
    if (static_cast<unsigned char>(byte) >= 0x20) {
        text += byte;
        return;
    }
    text += "\\u00";
    text += byte >= 0x10 ? '1' : '0';
    text += "0123456789abcdef"[byte & 15];
}

std::string as_json(float value) { return repr(static_cast<double>(value)); }
std::string as_json(std::uint8_t draws) { return draws != 0 ? "true" : "false"; }

// Numbers in lists within each other, of `shape` from its place `axis` on.
template <typename T>
const T* append_list(std::string& text, const T* values, const std::vector<std::size_t>& shape, std::size_t axis) {
    text += '[';
    for (std::size_t i = 0; i < shape[axis]; ++i) {
        if (i > 0) text += ", ";
        if (axis + 1 < shape.size())
            values = append_list(text, values, shape, axis + 1);
        else
            text += as_json(*values++);
    }
    text += ']';
    return values;
}

template <typename T>
void append_array(std::string& text, const char* name, const std::vector<T>& values,
                  const std::vector<std::size_t>& shape) {
    text += ", \"" + std::string(name) + "\": ";
    append_list(text, values.data(), shape, 0);
}

}  // namespace

std::string json_text(std::string_view text) {
    std::string result = "\"";
    for (const char byte : text) append_escaped(result, byte);
    return result + "\"";
}

std::string json_text(const Plan& plan) {
    constexpr std::size_t rows = static_cast<std::size_t>(REGISTERS);
    const std::size_t calls = plan.calls();
    std::string text = "{\"format\": \"latentrt.plan/1\"";
    append_array(text, "timesteps", plan.timesteps, {calls});
    append_array(text, "coefficients", plan.coefficients, {calls, rows, rows + 2});
    append_array(text, "initial", plan.initial, {rows, 2});
    append_array(text, "draws", plan.draws, {calls});
    append_array(text, "noise_levels", plan.noise_levels, {calls + 1, 2});
    append_array(text, "blend", plan.blend, {calls, 2});
    append_array(text, "guidance", plan.guidance, {calls, 2});
    return text + "}";
}

}  // namespace lrt
