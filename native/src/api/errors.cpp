// Errors of the C header.
#include "../base/utf8.hpp"
#include "handles.hpp"

#include <cstring>

namespace {

// Given out where there is no memory for an error, and never freed.
latentrt_error no_memory{LATENTRT_OUT_OF_MEMORY,
                         "this call needs more memory than there is: lower the number of images, their size or the "
                         "texts' length, or set vae_tiling"};

}  // namespace

namespace lrt {

latentrt_status fail(latentrt_error** error, latentrt_status status, const char* text) noexcept {
    if (error == nullptr) return status;
    *error = &no_memory;
    if (text == nullptr) return status;
    const std::size_t bytes = std::strlen(text) + 1;
    char* copy = new (std::nothrow) char[bytes];
    if (copy == nullptr) return status;
    std::memcpy(copy, text, bytes);
    // Names of files may be anything; texts of errors are UTF-8.
    for (std::size_t at = 0; at + 1 < bytes;)
        if (!lrt::next_point({copy, bytes - 1}, at)) copy[at++] = '?';
    if (auto* made = new (std::nothrow) latentrt_error{status, copy}) {
        *error = made;
    } else {
        delete[] copy;
    }
    return status;
}

}  // namespace lrt

latentrt_status latentrt_error_status(const latentrt_error* error) {
    return error == nullptr ? LATENTRT_OK : error->status;
}

const char* latentrt_error_text(const latentrt_error* error) { return error == nullptr ? "" : error->text; }

void latentrt_error_free(latentrt_error* error) {
    if (error == nullptr || error == &no_memory) return;
    delete[] error->text;
    delete error;
}
