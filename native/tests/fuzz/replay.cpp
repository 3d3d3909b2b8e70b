// Runs files through a fuzz target, so that any compiler tests what fuzzing has found.
//
//     replay TARGET FILE…
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <vector>

#define TARGET(name) extern "C" int fuzz_##name(const std::uint8_t*, std::size_t);
#include "targets.inc"
#undef TARGET

namespace {

struct Target {
    const char* name;
    int (*run)(const std::uint8_t*, std::size_t);
};

constexpr Target TARGETS[] = {
#define TARGET(name) {#name, fuzz_##name},
#include "targets.inc"
#undef TARGET
};

}  // namespace

int main(int count, char** words) {
    for (const Target& target : TARGETS) {
        if (count < 2 || std::strcmp(target.name, words[1]) != 0) continue;
        for (int i = 2; i < count; ++i) {
            std::printf("%s\n", words[i]);
            std::fflush(stdout);  // the last one is at fault
            std::ifstream file(words[i], std::ios::binary);
            if (!file) return 2;
            // Exactly as large as the input, so that reading beyond its end is seen.
            const std::vector<char> content{std::istreambuf_iterator<char>(file), {}};
            target.run(reinterpret_cast<const std::uint8_t*>(content.data()), content.size());
        }
        return 0;
    }
    return 2;
}
