// Milliseconds by stage.
#pragma once

#include <chrono>
#include <map>
#include <string>

namespace lrt {

class Clock {
  public:
    // The time since the last lap belongs to `stage`.
    void lap(const char* stage) {
        const auto now = std::chrono::steady_clock::now();
        laps_[stage] = milliseconds(now - last_);
        last_ = now;
    }

    // All laps, and the total.
    std::map<std::string, double> done() {
        laps_["total"] = milliseconds(std::chrono::steady_clock::now() - start_);
        return laps_;
    }

  private:
    static double milliseconds(std::chrono::steady_clock::duration time) {
        return std::chrono::duration<double, std::milli>(time).count();
    }

    std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now(), last_ = start_;
    std::map<std::string, double> laps_;
};

}  // namespace lrt
