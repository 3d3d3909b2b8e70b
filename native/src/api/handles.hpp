// What the opaque handles of the C header are, and how failures cross the border.
#pragma once

#include "../base/array.hpp"
#include "../base/error.hpp"
#include "../pipeline.hpp"

#include <latentrt/latentrt.h>

#include <atomic>
#include <exception>
#include <new>
#include <string>

struct latentrt_error {
    latentrt_status status;
    const char* text;  // allocated, but for the static error
};

struct latentrt_call {
    std::atomic<bool> cancelled{false};
};

struct latentrt_plan {
    lrt::GivenPlan given;
};

namespace lrt {

// Puts an error there, where the caller wants one. Without memory for it, the error is a static one.
latentrt_status fail(latentrt_error** error, latentrt_status status, const char* text) noexcept;

// Runs a function and turns what it throws into a status.
template <typename Function>
latentrt_status guarded(latentrt_error** error, Function&& function) noexcept {
    if (error != nullptr) *error = nullptr;
    try {
        function();
        return LATENTRT_OK;
    } catch (const Error& failure) {
        return fail(error, failure.status(), failure.what());
    } catch (const std::bad_alloc&) {
        return fail(error, LATENTRT_OUT_OF_MEMORY, nullptr);
    } catch (const std::exception& failure) {
        return fail(error, LATENTRT_INTERNAL, failure.what());
    } catch (...) {
        return fail(error, LATENTRT_INTERNAL, "an exception of a type that is not std::exception");
    }
}

}  // namespace lrt
