#include "files.hpp"

#define STB_IMAGE_IMPLEMENTATION
#define STB_IMAGE_STATIC
#define STBI_FAILURE_USERMSG
// GCC warns of functions that are not used, also in others' headers.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-function"
#include <stb/stb_image.h>
#define STB_IMAGE_WRITE_IMPLEMENTATION
#define STB_IMAGE_WRITE_STATIC
#define STBI_WRITE_NO_STDIO
#include <stb/stb_image_write.h>
#pragma GCC diagnostic pop

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <memory>
#include <new>
#include <stdexcept>
#include <utility>

namespace {

using File = std::unique_ptr<std::FILE, int (*)(std::FILE*)>;

[[noreturn]] void fail(const std::string& file, const char* what) {
    throw std::runtime_error(file + what + ": " + std::strerror(errno));
}

}  // namespace

PictureFile::PictureFile(const std::string& file) {
    const std::string bytes = text_of_file(file);
    if (bytes.rfind("\x93NUMPY", 0) == 0)
        throw std::runtime_error(file + " holds latents: this program reads pictures, `latentrt generate` both");
    const bool jpeg = bytes.rfind("\xff\xd8", 0) == 0;
    // In a scan, FF is followed by other bytes; the end of a thumbnail comes before the scan begins.
    const std::size_t scan = bytes.rfind("\xff\xda"), end = bytes.rfind("\xff\xd9");
    if (jpeg && (scan == std::string::npos || end == std::string::npos || end < scan))
        throw std::runtime_error(file + " is truncated: a JPEG file without its end");
    int height = 0, width = 0, channels = 0;
    const std::unique_ptr<stbi_uc, void (*)(void*)> pixels(
        stbi_load_from_memory(reinterpret_cast<const stbi_uc*>(bytes.data()), static_cast<int>(bytes.size()), &width,
                              &height, &channels, 0),
        stbi_image_free);
    if (pixels == nullptr)
        throw std::runtime_error(file + " cannot be read as a picture (" + stbi_failure_reason() +
                                 "): expected PNG, JPEG, BMP, GIF, TGA or PNM");
    const std::size_t count = std::size_t(width) * std::size_t(height);
    const int kept = channels == 2 ? 1 : channels;  // grey with alpha becomes grey
    pixels_ = {std::vector<std::uint8_t>(count * std::size_t(kept)), height, width, kept};
    for (std::size_t i = 0; i < count; ++i)
        std::copy_n(pixels.get() + i * std::size_t(channels), kept, &pixels_.bytes[i * std::size_t(kept)]);
    if (jpeg) pixels_ = upright(std::move(pixels_), orientation_of(bytes));
}

void require_place(const std::string& file) {
    namespace fs = std::filesystem;
    const fs::path path(file), folder = path.has_parent_path() ? path.parent_path() : fs::path(".");
    std::error_code error;
    fs::create_directories(folder, error);
    if (fs::is_directory(path, error))
        errno = EISDIR;
    else if (access(folder.c_str(), W_OK) == 0)
        return;
    fail(file, " cannot be written");
}

std::string text_of_file(const std::string& file) {
    const File stream(std::fopen(file.c_str(), "rb"), std::fclose);
    if (stream == nullptr) fail(file, " cannot be read");
    std::string bytes;
    char block[1 << 16];
    for (std::size_t got = 1; got != 0;) {
        got = std::fread(block, 1, sizeof block, stream.get());
        bytes.append(block, got);
        if (bytes.size() > std::size_t{1} << 30) throw std::runtime_error(file + " has more than a GiB");
    }
    if (std::ferror(stream.get()) != 0) fail(file, " cannot be read");
    return bytes;
}

void write_file(const std::string& file, const void* data, std::size_t size) {
    const std::string partial = file + ".part";
    File stream(std::fopen(partial.c_str(), "wb"), std::fclose);
    if (stream == nullptr) fail(file, " cannot be written");
    const bool written = std::fwrite(data, 1, size, stream.get()) == size && std::fflush(stream.get()) == 0;
    if (!written || std::fclose(stream.release()) != 0 || std::rename(partial.c_str(), file.c_str()) != 0) {
        const int reason = errno;
        std::remove(partial.c_str());
        errno = reason;
        fail(file, " cannot be written");
    }
}

std::string png(const std::uint8_t* pixels, int height, int width) {
    std::string file;
    const auto append = [](void* to, void* data, int size) {
        static_cast<std::string*>(to)->append(static_cast<const char*>(data), static_cast<std::size_t>(size));
    };
    if (stbi_write_png_to_func(append, &file, width, height, 3, pixels, 3 * width) == 0) throw std::bad_alloc();
    return file;
}

std::string npy(const std::vector<std::size_t>& shape, const std::vector<float>& values) {
    std::string sides;
    for (const std::size_t side : shape) sides += std::to_string(side) + ", ";
    std::string header = "{'descr': '<f4', 'fortran_order': False, 'shape': (" + sides + "), }";
    header.append(63 - (10 + header.size()) % 64, ' ');
    header += '\n';
    std::string bytes("\x93NUMPY\x01\x00", 8);
    bytes += static_cast<char>(header.size() & 255);
    bytes += static_cast<char>(header.size() >> 8);
    bytes += header;
    bytes.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float));
    return bytes;
}
