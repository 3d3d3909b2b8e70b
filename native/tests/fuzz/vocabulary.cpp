// A tokenizer.json that is right but for its vocabulary, merges and added tokens: these are the input's three parts,
// with NUL between them.
#include "../../src/base/error.hpp"
#include "../../src/text/tokenizer.hpp"
#include "small_tokenizer.hpp"

#include <cstdint>
#include <cstdlib>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    std::string parts[] = {fuzz::VOCAB, fuzz::MERGES, fuzz::ADDED};
    std::string_view rest(reinterpret_cast<const char*>(data), size);
    for (std::string& part : parts) {
        const std::size_t end = std::min(rest.find('\0'), rest.size());
        if (end > 0) part = std::string(rest.substr(0, end));
        rest.remove_prefix(std::min(end + 1, rest.size()));
    }
    try {
        const lrt::Tokenizer tokenizer(fuzz::tokenizer_json(parts[0], parts[1], parts[2]), fuzz::facts());
        const std::string text = "abcabc abc ab <CAT><|EndOfText|>a\xc3\xa9, \xe2\x82\xac <|endoftext|>b";
        std::size_t before = 0;
        for (const auto& [id, at] : tokenizer.located(text)) {
            if (at < before || at >= text.size()) std::abort();
            before = at;
        }
        tokenizer.chunks({{{text, 1.5}}, {}}, true);
    } catch (const lrt::Error& error) {
        if (error.status() != LATENTRT_BUNDLE) std::abort();
    }
    return 0;
}
