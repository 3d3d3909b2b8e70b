// The command line of latentrt-draw. Flags are named as those of `latentrt generate`.
#pragma once

#include <latentrt/latentrt.hpp>

#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

struct UsageError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

struct Arguments {
    latentrt::Request request;
    latentrt::OpenOptions open;
    std::string bundle, out = "out.png", plan, save_latents;
    std::vector<std::string> images, masks;  // files
    bool prompt = false, help = false, verify = false, schedulers = false, verbose = false, version = false,
         preview = false;
};

extern const char* const USAGE;

// Throws UsageError with what is wrong.
Arguments arguments_from(int count, const char* const* words);
