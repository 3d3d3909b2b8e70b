// Finished pictures behind their handle.
#pragma once

#include "../pipeline.hpp"

#include <latentrt/latentrt.h>

#include <mutex>
#include <string>
#include <vector>

struct latentrt_images {
    explicit latentrt_images(lrt::Drawn finished) : drawn(std::move(finished)), files(drawn.seeds.size()) {}

    lrt::Drawn drawn;
    mutable std::mutex mutex;
    mutable std::vector<std::vector<std::uint8_t>> files;  // PNG, made when asked for
};

namespace lrt {

// What differs from the golden outputs.
std::string unequal_text(const Verification& found, const Golden& golden);

}  // namespace lrt
