// Errors that cross the border as a status and a text.
#pragma once

#include <latentrt/latentrt.h>

#include <stdexcept>
#include <string>

namespace lrt {

class Error : public std::runtime_error {
  public:
    Error(latentrt_status status, const std::string& text) : std::runtime_error(text), status_(status) {}
    latentrt_status status() const { return status_; }

  private:
    latentrt_status status_;
};

inline Error input_error(const std::string& text) { return {LATENTRT_INPUT, text}; }
inline Error scheduler_error(const std::string& text) { return {LATENTRT_SCHEDULER, text}; }
inline Error bundle_error(const std::string& text) { return {LATENTRT_BUNDLE, text}; }
inline Error backend_error(const std::string& text) { return {LATENTRT_BACKEND, text}; }

}  // namespace lrt
