// A whole tokenizer.json: it is refused with an error that names it, or tokenizes.
#include "../../src/base/error.hpp"
#include "../../src/text/tokenizer.hpp"
#include "small_tokenizer.hpp"

#include <cstdint>
#include <cstdlib>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    try {
        const lrt::Tokenizer tokenizer({reinterpret_cast<const char*>(data), size}, fuzz::facts());
        tokenizer.located("abc <CAT> a\xcc\x81 <|endoftext|>, zz");
    } catch (const lrt::Error& error) {
        if (error.status() != LATENTRT_BUNDLE) std::abort();
    }
    return 0;
}
