#include "utf8.hpp"

#include "python_tables.hpp"

#include <cstdint>

namespace lrt {

namespace {

// What the first byte tells: how many follow, and the least code point that needs as many.
struct Lead {
    std::size_t following;
    char32_t bits, least;
};

std::optional<Lead> lead_of(std::uint8_t byte) {
    if (byte < 0x80) return Lead{0, byte, 0};
    if (byte >= 0xc2 && byte < 0xe0) return Lead{1, byte & 0x1fu, 0x80};
    if (byte >= 0xe0 && byte < 0xf0) return Lead{2, byte & 0x0fu, 0x800};
    if (byte >= 0xf0 && byte < 0xf5) return Lead{3, byte & 0x07u, 0x10000};
    return std::nullopt;
}

void append_hexadecimal(std::string& text, const char* prefix, char32_t value, int digits) {
    text += prefix;
    for (int shift = 4 * (digits - 1); shift >= 0; shift -= 4) text += "0123456789abcdef"[(value >> shift) & 0xf];
}

void append_shown(std::string& text, char32_t point, char32_t quote) {
    if (point == quote || point == U'\\') text += '\\';
    if (point == U'\n') {
        text += "\\n";
    } else if (point == U'\r') {
        text += "\\r";
    } else if (point == U'\t') {
        text += "\\t";
    } else if (contains(PYTHON_PRINTABLE, point)) {
        append_utf8(text, point);
    } else if (point < 0x100) {
        append_hexadecimal(text, "\\x", point, 2);
    } else if (point < 0x10000) {
        append_hexadecimal(text, "\\u", point, 4);
    } else {
        append_hexadecimal(text, "\\U", point, 8);
    }
}

}  // namespace

std::optional<char32_t> next_point(std::string_view text, std::size_t& at) {
    if (at >= text.size()) return std::nullopt;
    const std::optional<Lead> lead = lead_of(static_cast<std::uint8_t>(text[at]));
    if (!lead || text.size() - at <= lead->following) return std::nullopt;
    char32_t point = lead->bits;
    for (std::size_t i = 1; i <= lead->following; ++i) {
        const auto byte = static_cast<std::uint8_t>(text[at + i]);
        if ((byte & 0xc0) != 0x80) return std::nullopt;
        point = (point << 6) | (byte & 0x3fu);
    }
    if (point < lead->least || point > 0x10ffff || (point >= 0xd800 && point < 0xe000)) return std::nullopt;
    at += lead->following + 1;
    return point;
}

std::optional<std::u32string> decoded(std::string_view text) {
    std::u32string points;
    points.reserve(text.size());
    for (std::size_t at = 0; at < text.size();) {
        const std::optional<char32_t> point = next_point(text, at);
        if (!point) return std::nullopt;
        points += *point;
    }
    return points;
}

void append_utf8(std::string& text, char32_t point) {
    const auto add = [&](char32_t byte) { text += static_cast<char>(static_cast<std::uint8_t>(byte)); };
    const std::size_t size = utf8_size(point);
    if (size == 1) return add(point);
    const char32_t leads[] = {0xc0, 0xe0, 0xf0};
    add(leads[size - 2] | (point >> (6 * (size - 1))));
    for (std::size_t left = size - 1; left > 0; --left) add(0x80 | ((point >> (6 * (left - 1))) & 0x3f));
}

std::string encoded(std::u32string_view points) {
    std::string text;
    text.reserve(points.size());
    for (const char32_t point : points) append_utf8(text, point);
    return text;
}

std::string_view first_points(std::string_view text, std::size_t most) {
    std::size_t end = 0, count = 0;
    for (; end < text.size() && count < most; ++count)
        if (!next_point(text, end)) ++end;
    return text.substr(0, end);
}

std::string shown(std::string_view text, std::size_t most) {
    const std::string_view cut = first_points(text, most);
    const auto has = [cut](char c) { return cut.find(c) != std::string_view::npos; };
    const char quote = has('\'') && !has('"') ? '"' : '\'';
    std::string out(1, quote);
    for (std::size_t at = 0; at < cut.size();) {
        const std::optional<char32_t> point = next_point(cut, at);
        if (point)
            append_shown(out, *point, static_cast<char32_t>(quote));
        else
            append_hexadecimal(out, "\\x", static_cast<std::uint8_t>(cut[at++]), 2);
    }
    return out + quote;
}

}  // namespace lrt
