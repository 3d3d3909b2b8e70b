#include "json.hpp"

#include "utf8.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>
#include <new>
#include <set>
#include <stdexcept>
#include <vector>

namespace lrt {

namespace {

// The library's texts quote what was read, which may be anything, and are cut: messages are UTF-8.
std::string valid(std::string text) {
    if (!decoded(text))
        for (char& letter : text)
            if (static_cast<unsigned char>(letter) >= 0x80) letter = '?';
    return text;
}

[[noreturn]] void fail() { throw std::runtime_error(std::strerror(errno)); }

}  // namespace

std::string bytes_of(const Path& file, std::size_t most) {
    // Opening a pipe would wait for who writes it.
    const int descriptor = ::open(file.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    if (descriptor < 0) fail();
    const std::unique_ptr<std::FILE, int (*)(std::FILE*)> stream(fdopen(descriptor, "rb"), std::fclose);
    if (stream == nullptr) {
        ::close(descriptor);
        throw std::bad_alloc();
    }
    struct stat status{};
    if (fstat(fileno(stream.get()), &status) != 0) fail();
    if (!S_ISREG(status.st_mode)) throw std::runtime_error("it is not a regular file");
    const auto size = static_cast<std::size_t>(status.st_size);
    if (size > most)
        throw std::runtime_error("it has " + std::to_string(size) + " bytes: expected at most " + std::to_string(most));
    std::string bytes(size, '\0');
    if (std::fread(bytes.data(), 1, size, stream.get()) != size) {
        if (std::ferror(stream.get()) != 0) fail();
        throw std::runtime_error("it was changed while it was read");
    }
    return bytes;
}

Json json_from(std::string_view text) {
    std::vector<std::set<std::string>> open;  // keys of the objects that are not closed
    const auto unique = [&](int depth, Json::parse_event_t event, Json& parsed) {
        // Copies and texts of what is nested recur.
        if (depth > 100) throw std::runtime_error("it is nested too deeply");
        if (event == Json::parse_event_t::object_start) {
            open.emplace_back();
        } else if (event == Json::parse_event_t::object_end) {
            open.pop_back();
        } else if (event == Json::parse_event_t::key) {
            const auto& key = parsed.get_ref<const std::string&>();
            if (!open.back().insert(key).second) throw std::runtime_error("the key " + shown(key) + " occurs twice");
        }
        return true;
    };
    try {
        return Json::parse(text.begin(), text.end(), unique);
    } catch (const Json::exception& error) {
        // The library's text begins with its own name of the error, in brackets.
        const std::string what = error.what();
        const auto from = what.rfind("[json.exception", 0) == 0 ? what.find("] ") + 2 : 0;
        throw std::runtime_error(valid(what.substr(from, 300)));
    }
}

}  // namespace lrt
