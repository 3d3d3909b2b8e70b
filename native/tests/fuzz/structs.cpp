// Structs of other versions of the header: any bytes, with any struct_size that memory is there for, or that is
// refused.
#include "../../src/api/structs.hpp"
#include "input.hpp"

#include <memory>

namespace {

template <typename Struct>
void complete(const char* bytes, std::size_t size, const char* name) {
    try {
        const Struct full = lrt::completed(reinterpret_cast<const Struct*>(bytes), name);
        fuzz::check(std::memcmp(&full, bytes, std::min(size, sizeof full)) == 0);
        Struct defaults{};
        lrt::set_defaults(defaults);
        const std::size_t known = std::min(size, sizeof full);
        fuzz::check(std::memcmp(reinterpret_cast<const char*>(&full) + known,
                                reinterpret_cast<const char*>(&defaults) + known, sizeof full - known) == 0);
    } catch (const lrt::Error& error) {
        fuzz::check(error.status() == LATENTRT_INPUT);
    }
}

// What is not written keeps its value, and what is written is accepted.
template <typename Struct>
void fill(char* bytes, std::size_t size, const char* name) {
    std::memset(bytes, 0x5a, size);
    lrt::init(reinterpret_cast<Struct*>(bytes), size);
    if (size >= sizeof(std::size_t)) complete<Struct>(bytes, size, name);
}

template <typename Struct>
void run(fuzz::Input& input, const char* name) {
    const std::size_t size = input.number<std::uint16_t>() % (2 * sizeof(Struct));
    // A heap block of this size, so that a sanitizer sees what is read beyond it.
    const std::unique_ptr<char[]> block(new char[size]);
    fill<Struct>(block.get(), size, name);
    const std::string_view content = input.bytes(size);
    std::copy(content.begin(), content.end(), block.get());
    std::size_t said = 0;
    if (size < sizeof said) return;
    std::memcpy(&said, block.get(), sizeof said);
    // Sizes beyond the memory that there is are the caller's fault, but for those that are never right.
    if (said > size && said <= (std::size_t{1} << 16)) std::memcpy(block.get(), &(said = size), sizeof said);
    complete<Struct>(block.get(), said, name);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    fuzz::Input input(data, size);
    switch (input.below(3)) {
        case 0: run<latentrt_open_options>(input, "latentrt_open_options"); break;
        case 1: run<latentrt_request>(input, "latentrt_request"); break;
        default: run<latentrt_verification>(input, "latentrt_verification");
    }
    return 0;
}
