// Where messages go: the callback that a pipeline was opened with, or nowhere.
#pragma once

#include <latentrt/latentrt.h>

#include <string>

namespace lrt {

class Log {
  public:
    Log() = default;
    Log(latentrt_log_callback callback, void* user) : callback_(callback), user_(user) {}

    void info(const std::string& text) const { write(LATENTRT_LOG_INFO, text); }
    void warn(const std::string& text) const { write(LATENTRT_LOG_WARNING, text); }

  private:
    void write(latentrt_log_level level, const std::string& text) const {
        if (callback_ != nullptr) callback_(level, text.data(), text.size(), user_);
    }

    latentrt_log_callback callback_ = nullptr;
    void* user_ = nullptr;
};

}  // namespace lrt
