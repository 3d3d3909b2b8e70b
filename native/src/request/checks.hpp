// Single values of a call, checked by the table of options: the same ranges and messages as in Python.
#pragma once

#include "option_table.hpp"

#include <latentrt/latentrt.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace lrt {

// Each throws `NAME=VALUE: expected …` for a value that the option does not take.
void check_integer(std::string_view name, std::int64_t value);
void check_number(std::string_view name, double value);
void check_choice(std::string_view name, std::string_view value);
// Height or width: a multiple of the VAE's factor.
void check_side(std::string_view name, std::int64_t value, std::int64_t factor);
// Final layers of the text encoder to skip; `layers` is the least number of hidden states that a text encoder has.
void check_layers(std::string_view name, std::int64_t value, std::int64_t layers);
void check_pair(std::string_view name, latentrt_pair value);
// That a text is UTF-8, also where nothing tokenizes it, and its length; `name` may be one that the table does not
// have.
void check_text(std::string_view name, std::string_view text);

// The seed of each image: random, counted up from one, or one for each. `noise_seed_delta` must fit them too.
std::vector<std::uint64_t> checked_seeds(const std::uint64_t* seeds, std::size_t count, std::size_t images,
                                         std::int64_t noise_seed_delta);

}  // namespace lrt
