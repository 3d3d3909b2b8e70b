// The sessions of a bundle, each created on first use and kept.
#pragma once

#include "session.hpp"

#include <map>
#include <memory>
#include <mutex>
#include <string>

namespace lrt {

// Thread-safe.
class Engines {
  public:
    Engines(const Library& library, const Bundle& bundle, Device device);

    const Session& get(const std::string& graph);
    const Device& device() const { return device_; }
    const Library& library() const { return library_; }
    // Such as "onnxruntime-cpu 1.31.1".
    std::string name() const;

  private:
    struct Slot {
        std::once_flag once;
        std::unique_ptr<const Session> session;
    };
    const Library& library_;
    const Bundle& bundle_;
    Device device_;
    std::map<std::string, Slot> slots_;
};

}  // namespace lrt
