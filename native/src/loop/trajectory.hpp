// One image on its way from noise to latents. It depends on no other image.
#pragma once

#include "../base/array.hpp"
#include "../scheduler/plan.hpp"

#include <string>
#include <utility>
#include <vector>

namespace lrt {

struct Trajectory {
    const Plan* plan = nullptr;  // M calls
    Floats context;              // (G, S, D), groups ordered [negative, positive]
    Floats guidance;             // (M, G), weights of the groups' predictions in each call
    Floats noise;                // (1 + draws, C, h, w): the initial noise, then the draws in order
    float guidance_rescale = 0;  // calls that take the last group's prediction alone are not rescaled
    // What is missing has no values.
    Floats clean;  // (C, h, w), for plans that start from clean latents, and with a mask
    Floats mask;   // (1, h, w), for ordinary UNets: 1 where they draw; elsewhere `clean` is restored
    Floats extra;  // (C + 1, h, w), for UNets that inpaint: the mask, the latents of the masked picture
    // Inputs of the graph `time` besides timesteps, by name, each (G, width).
    std::vector<std::pair<std::string, Floats>> time_inputs;
};

}  // namespace lrt
