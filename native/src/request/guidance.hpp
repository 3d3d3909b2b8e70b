// Classifier-free guidance as the weights of each call's predictions (arXiv 2207.12598).
#pragma once

#include "../base/array.hpp"
#include "../scheduler/plan.hpp"

namespace lrt {

// AUTOMATIC1111's web UI divides its scale by this for CFG++, whose own scale is from 0 to 1.
constexpr double PLUS_PLUS = 12.5;

// Whether the negative prompt is computed too: diffusers' rule.
bool is_guided(double scale, bool plus_plus, bool distilled);

// (calls, 2), weights of the predictions for [negative, positive]. Guidance is on from call `start * calls` to before
// call `end * calls` (arXiv 2404.07724); the other calls take the positive prediction alone.
Floats guidance_weights(double scale, const Plan& plan, double start = 0, double end = 1);

// Throws unless start < end.
void check_interval(double start, double end);

// Throws for options that have no meaning with CFG++.
void check_plus_plus(double guidance_rescale, bool distilled);

}  // namespace lrt
