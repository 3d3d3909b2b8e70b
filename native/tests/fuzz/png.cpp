// Pixels and texts to a PNG file, and bytes to a stream of zlib.
#include "../../src/image/png.hpp"
#include "../../src/image/deflate.hpp"
#include "input.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    fuzz::Input input(data, size);
    const std::int64_t width = 1 + static_cast<std::int64_t>(input.below(64));
    const auto key = input.text(), value = input.text();
    const std::string_view rest = input.rest();
    // Repeated, so that windows, long matches and several blocks occur.
    std::vector<std::uint8_t> bytes;
    for (std::size_t i = input.below(2) == 0 ? 1 : 40; i-- > 0;) bytes.insert(bytes.end(), rest.begin(), rest.end());
    fuzz::check(lrt::deflated(bytes).size() < bytes.size() + bytes.size() / 100 + 64);
    const std::int64_t height = static_cast<std::int64_t>(bytes.size()) / (3 * width);
    if (height > 0) fuzz::check(lrt::png_file(bytes.data(), height, width, {{key, value}}).size() > 57);
    return 0;
}
