// The room `bundle`.
#include "answer.hpp"

#include "../../src/bundle/bundle.hpp"
#include "../../src/bundle/safetensors.hpp"

// What is wrong with a manifest, or nothing.
PROBE void probe_manifest(const char* text, std::size_t length, char* error) {
    probe::told(error, [&] { lrt::manifest_from({text, length}); });
}

// What is wrong with a bundle on disk, or nothing.
PROBE void probe_open_bundle(const char* folder, char* error) {
    probe::told(error, [&] { lrt::open_bundle(folder); });
}

// The floats of a tensor; returns how many there are.
PROBE std::size_t probe_safetensors(const char* bytes, std::size_t length, const char* name, float* out,
                                    std::size_t size, char* error) {
    std::size_t count = 0;
    probe::told(error, [&] {
        const lrt::Floats array = lrt::Safetensors({bytes, length}).array<float>(name, "F32");
        count = array.values.size();
        std::copy_n(array.values.begin(), std::min(count, size), out);
    });
    return count;
}
