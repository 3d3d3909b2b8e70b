#include "normal_form.hpp"

#include "unicode_tables.hpp"

#include <algorithm>
#include <cstdint>
#include <optional>
#include <tuple>

namespace lrt {

namespace {

// Hangul syllables are composed by arithmetic: The Unicode Standard, 3.12.
constexpr char32_t SYLLABLES = 0xac00, LEADS = 0x1100, VOWELS = 0x1161, TAILS = 0x11a7;
constexpr char32_t LEAD_COUNT = 19, VOWEL_COUNT = 21, TAIL_COUNT = 28;
constexpr char32_t SYLLABLE_COUNT = LEAD_COUNT * VOWEL_COUNT * TAIL_COUNT;
// All before it are in their normal form, and have no combining class.
constexpr char32_t FIRST_MARK = 0x300;

// A code point on its way to its normal form. `inserted` is how many more code points there are than before: 1 for what
// a decomposition adds, -2 for what was made of three. The library tells offsets by it.
struct Part {
    char32_t point;
    std::uint8_t combining_class;
    int inserted;
    std::size_t place;
};

void add(std::vector<Part>& parts, char32_t point, std::uint8_t combining_class, int inserted) {
    parts.push_back({point, combining_class, inserted, parts.size()});
}

std::uint8_t class_of(char32_t point) {
    if (point < FIRST_MARK) return 0;
    const CombiningClass* row = row_of(COMBINING_CLASSES, point);
    return row == nullptr ? 0 : row->number;
}

void decompose_syllable(char32_t index, std::vector<Part>& parts) {
    add(parts, LEADS + index / (VOWEL_COUNT * TAIL_COUNT), 0, 0);
    add(parts, VOWELS + index / TAIL_COUNT % VOWEL_COUNT, 0, 1);
    if (index % TAIL_COUNT != 0) add(parts, TAILS + index % TAIL_COUNT, 0, 1);
}

void decompose(char32_t point, std::vector<Part>& parts) {
    if (point >= SYLLABLES && point < SYLLABLES + SYLLABLE_COUNT) return decompose_syllable(point - SYLLABLES, parts);
    const Decomposition* row =
        std::lower_bound(DECOMPOSITIONS.begin(), DECOMPOSITIONS.end(), point,
                         [](const Decomposition& before, char32_t value) { return before.point < value; });
    if (row == DECOMPOSITIONS.end() || row->point != point) return add(parts, point, class_of(point), 0);
    for (std::size_t i = 0; i < row->count; ++i) {
        const char32_t part = DECOMPOSED[row->at + i];
        add(parts, part, class_of(part), i == 0 ? 0 : 1);
    }
}

// Sorts each run of marks by class; those of one class stay in order.
void sort_marks(std::vector<Part>& parts) {
    const auto is_mark = [](const Part& part) { return part.combining_class != 0; };
    const auto before = [](const Part& a, const Part& b) {
        return std::tie(a.combining_class, a.place) < std::tie(b.combining_class, b.place);
    };
    for (auto first = parts.begin(); first != parts.end();) {
        first = std::find_if(first, parts.end(), is_mark);
        const auto last = std::find_if_not(first, parts.end(), is_mark);
        std::sort(first, last, before);
        first = last;
    }
}

std::optional<char32_t> composed(char32_t first, char32_t second) {
    if (first >= LEADS && first < LEADS + LEAD_COUNT && second >= VOWELS && second < VOWELS + VOWEL_COUNT)
        return SYLLABLES + ((first - LEADS) * VOWEL_COUNT + second - VOWELS) * TAIL_COUNT;
    if (first >= SYLLABLES && first < SYLLABLES + SYLLABLE_COUNT && (first - SYLLABLES) % TAIL_COUNT == 0 &&
        second > TAILS && second < TAILS + TAIL_COUNT)
        return first + second - TAILS;
    const Composition* row =
        std::lower_bound(COMPOSITIONS.begin(), COMPOSITIONS.end(), std::pair(first, second),
                         [](const Composition& before, const std::pair<char32_t, char32_t>& pair) {
                             return std::tie(before.first, before.second) < std::tie(pair.first, pair.second);
                         });
    const bool found = row != COMPOSITIONS.end() && row->first == first && row->second == second;
    return found ? std::optional(row->result) : std::nullopt;
}

// The canonical composition algorithm, in place.
void compose(std::vector<Part>& parts) {
    std::size_t count = 0, starter = parts.size();  // beyond the end: none yet
    for (const Part& part : parts) {
        // A mark is blocked by one of its class or a greater one between it and the starter; so is another starter.
        const bool between = starter + 1 < count;
        const bool blocked =
            starter == parts.size() || (between && parts[count - 1].combining_class >= part.combining_class);
        const std::optional<char32_t> both = blocked ? std::nullopt : composed(parts[starter].point, part.point);
        if (both) {
            parts[starter].point = *both;
            parts[starter].inserted += part.inserted - 1;
            continue;
        }
        if (part.combining_class == 0) starter = count;
        parts[count++] = part;
    }
    parts.resize(count);
}

Points composed_form(std::u32string_view text, const std::size_t* at) {
    std::vector<Part> parts;
    parts.reserve(text.size());
    for (const char32_t point : text) decompose(point, parts);
    sort_marks(parts);
    compose(parts);
    Points points;
    points.text.reserve(parts.size());
    points.at.reserve(parts.size());
    std::size_t next = 0;  // of the original code points
    for (const Part& part : parts) {
        points.text += part.point;
        if (part.inserted > 0) {
            points.at.push_back(at[next == 0 ? 0 : next - 1]);
        } else {
            points.at.push_back(at[std::min(next, text.size() - 1)]);
            next += static_cast<std::size_t>(1 - part.inserted);
        }
    }
    return points;
}

char32_t lower_case(char32_t point) {
    if (point < 0x80) return point >= U'A' && point <= U'Z' ? point + 32 : point;
    const LowerCase* row = row_of(LOWER_CASES, point);
    if (row == nullptr || (point - row->first) % row->step != 0) return point;
    return static_cast<char32_t>(static_cast<std::int32_t>(point) + row->added);
}

void append_lower_case(Points& points, char32_t point, std::size_t at) {
    points.text += point == 0x130 ? U'i' : lower_case(point);
    points.at.push_back(at);
    if (point != 0x130) return;
    // The only character whose lower case has two.
    points.text += 0x307;
    points.at.push_back(at);
}

}  // namespace

Points normalized(std::u32string_view text, const std::size_t* at) {
    const bool simple = std::all_of(text.begin(), text.end(), [](char32_t point) { return point < FIRST_MARK; });
    const Points before = simple ? Points{std::u32string(text), {at, at + text.size()}} : composed_form(text, at);
    Points after;
    after.text.reserve(before.text.size());
    after.at.reserve(before.text.size());
    for (std::size_t i = 0; i < before.text.size(); ++i) {
        if (!contains(SPACES, before.text[i])) {
            append_lower_case(after, before.text[i], before.at[i]);
        } else if (i + 1 == before.text.size() || !contains(SPACES, before.text[i + 1])) {
            // A space comes from the last one of its run.
            append_lower_case(after, U' ', before.at[i]);
        }
    }
    return after;
}

}  // namespace lrt
