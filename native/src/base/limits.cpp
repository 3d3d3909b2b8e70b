#include "limits.hpp"

#include "error.hpp"

#include <cstdlib>

namespace lrt {

namespace {

std::int64_t from_environment(const char* name, std::int64_t otherwise) {
    const std::string variable = std::string("LATENTRT_") + name;
    const char* given = std::getenv(variable.c_str());
    if (given == nullptr) return otherwise;
    const std::string text = given;
    const bool digits = !text.empty() && text.size() <= 18 && text.find_first_not_of("0123456789") == std::string::npos;
    const std::int64_t value = digits ? std::stoll(text) : 0;
    if (value < 1)
        throw input_error(variable + "='" + text.substr(0, 80) + "': expected an integer >= 1; the default is " +
                          std::to_string(otherwise));
    return value;
}

Limits read() {
    Limits limits{from_environment("MAX_SIDE", 16384),
                  from_environment("MAX_IMAGES", 1024),
                  from_environment("MAX_PIXELS", std::int64_t{1} << 26),
                  from_environment("MAX_CHARACTERS", 100'000),
                  from_environment("MAX_TOKENS", std::int64_t{1} << 18),
                  from_environment("MAX_STEPS", 10'000),
                  from_environment("MAX_TOKENS_OF_TEXT", 128 * 77),
                  0};
    limits.MAX_NOISE = limits.MAX_PIXELS > (std::int64_t{1} << 56) ? limits.MAX_PIXELS : 64 * limits.MAX_PIXELS;
    return limits;
}

}  // namespace

const Limits& limits() {
    static const Limits read_once = read();
    return read_once;
}

std::string raised_by(const char* name) { return std::string("set LATENTRT_") + name + " to raise the limit"; }

}  // namespace lrt
