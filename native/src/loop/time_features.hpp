// The features of all timesteps of a plan, kept for the last plans.
#pragma once

#include "../backends/engines.hpp"
#include "trajectory.hpp"

#include <cstddef>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace lrt {

// (M * G, F) in the type of the graph; the rows of call k are those from k * G on.
struct Features {
    std::vector<std::byte> bytes;
    std::size_t row_bytes = 0;
};

// Thread-safe.
class TimeFeatures {
  public:
    explicit TimeFeatures(Engines& engines) : engines_(engines) {}
    std::shared_ptr<const Features> of(const Trajectory& trajectory);

  private:
    std::shared_ptr<const Features> computed(const Trajectory& trajectory) const;

    Engines& engines_;
    std::mutex mutex_;
    // The last used first.
    std::list<std::pair<std::string, std::shared_ptr<const Features>>> kept_;
};

}  // namespace lrt
