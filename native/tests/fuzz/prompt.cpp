// A prompt with a small vocabulary: its first byte chooses the syntax and whether long texts are split.
#include "../../src/base/error.hpp"
#include "../../src/base/utf8.hpp"
#include "../../src/text/tokenizer.hpp"
#include "small_tokenizer.hpp"

#include <cmath>
#include <cstdint>
#include <cstdlib>

namespace {

void check(bool holds) {
    if (!holds) std::abort();
}

void check_located(const lrt::Tokenizer& tokenizer, std::string_view text) {
    std::size_t before = 0;
    for (const auto& [id, at] : tokenizer.located(text)) {
        check(at >= before && at < text.size() && (static_cast<unsigned char>(text[at]) & 0xc0) != 0x80);
        before = at;
    }
}

void check_chunks(const lrt::Chunks& chunks, bool split) {
    check(chunks.ids.shape == chunks.weights.shape && chunks.ids.shape[1] == 9);
    check(chunks.ids.values.size() == lrt::elements(chunks.ids.shape) && chunks.ids.rows() > 0);
    check(chunks.weights.values.size() == chunks.ids.values.size());
    check(lrt::decoded(chunks.dropped).has_value() && !(split && !chunks.dropped.empty()));
    for (const float weight : chunks.weights.values) check(std::abs(weight) <= 1000);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    static const lrt::Tokenizer tokenizer(fuzz::tokenizer_json(fuzz::VOCAB, fuzz::MERGES, fuzz::ADDED), fuzz::facts());
    if (size == 0) return 0;
    const std::string_view prompt(reinterpret_cast<const char*>(data) + 1, size - 1);
    const bool split = (data[0] & 2) != 0;
    const auto syntax = (data[0] & 1) != 0 ? LATENTRT_SYNTAX_WEB_UI : LATENTRT_SYNTAX_PLAIN;
    check(lrt::decoded(lrt::shown(prompt)).has_value());
    try {
        const auto sections = lrt::parse(prompt, syntax, {});
        check_located(tokenizer, prompt);
        check_chunks(tokenizer.chunks(sections, split), split);
    } catch (const lrt::Error& error) {
        check(error.status() == LATENTRT_INPUT);
        check(lrt::decoded(error.what()).has_value());
    }
    return 0;
}
