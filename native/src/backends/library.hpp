// ONNX Runtime, loaded from a file while the program runs. Linking to it would bind the program to its exact version.
#pragma once

#include <onnxruntime_c_api.h>

#include <filesystem>
#include <memory>
#include <string>

namespace lrt {

// One library file: its table of functions and its environment. Loaded once in a process and never unloaded.
class Library {
  public:
    // An empty name is that of LATENTRT_ONNXRUNTIME, else libonnxruntime.so.1, which the loader looks for.
    static const Library& load(const std::string& name);

    const OrtApi& api() const { return *api_; }
    OrtEnv* env() const { return env_; }
    const std::string& version() const { return version_; }  // such as 1.31.1
    int minor() const;                                       // such as 31

    // Throws for a status that is a failure, and frees it. `what` begins the text.
    void check(OrtStatus* status, const std::string& what) const;

    // The default allocator of host memory; sessions share one arena.
    const OrtMemoryInfo* host() const { return host_; }

  private:
    explicit Library(const std::string& name);
    void share_arena() const;

    const OrtApi* api_ = nullptr;
    OrtEnv* env_ = nullptr;
    OrtMemoryInfo* host_ = nullptr;
    std::string version_;
};

// What ONNX Runtime gave, freed by its function of this library.
template <typename T>
class Owned {
  public:
    Owned() = default;
    Owned(T* given, void (*release)(T*)) : given_(given, release) {}
    T* get() const { return given_.get(); }
    explicit operator bool() const { return given_ != nullptr; }

  private:
    std::unique_ptr<T, void (*)(T*)> given_{nullptr, nullptr};
};

}  // namespace lrt
