// ONNX Runtime, loaded from a file while the program runs: the wheel `onnxruntime` holds the library for CPUs,
// `onnxruntime-gpu` that for NVIDIA GPUs. Linking to it would bind the program to its exact version.
#pragma once

#include "bundle.hpp"

#define ORT_API_MANUAL_INIT
#include <onnxruntime_cxx_api.h>

#include <dlfcn.h>

#include <memory>

namespace latentrt {

// The library and its environment; keep one for the life of the process.
class Library {
  public:
    explicit Library(const Path& file) {
        void* handle = dlopen(file.c_str(), RTLD_NOW | RTLD_LOCAL);
        if (handle == nullptr) throw Error(std::string("ONNX Runtime cannot be loaded: ") + dlerror());
        const auto base = reinterpret_cast<const OrtApiBase* (*)()>(dlsym(handle, "OrtGetApiBase"));
        if (base == nullptr) throw Error(file.string() + " is not ONNX Runtime");
        const OrtApi* api = base()->GetApi(ORT_API_VERSION);
        if (api == nullptr)
            throw Error(file.string() + " is ONNX Runtime " + base()->GetVersionString() +
                        ", older than the headers of this program (1." + std::to_string(ORT_API_VERSION) + ")");
        Ort::InitApi(api);
        env = std::make_unique<Ort::Env>(ORT_LOGGING_LEVEL_ERROR, "latentrt");
    }

    std::unique_ptr<Ort::Env> env;
};

struct Device {
    bool cuda = false;
    int threads = 0;  // of ONNX Runtime, on the CPU; 0 is one for each core
};

inline Ort::MemoryInfo host_memory() { return Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault); }

// A tensor over values that somebody else owns, and keeps until the engine has run.
template <typename T>
Ort::Value view(const T* values, const std::vector<std::int64_t>& shape) {
    std::size_t count = 1;
    for (const std::int64_t size : shape) count *= std::size_t(size);
    // ONNX Runtime takes inputs as mutable, and does not change them.
    return Ort::Value::CreateTensor<T>(host_memory(), const_cast<T*>(values), count, shape.data(), shape.size());
}

// One graph of the bundle. Loaded by path, so that its weights are mapped from the file and read once.
class Engine {
  public:
    Engine(const Library& library, const Graph& graph, const Device& device)
        : graph_(graph), session_(*library.env, graph.file.c_str(), options(device)),
          memory_(device.cuda ? Ort::MemoryInfo("Cuda", OrtDeviceAllocator, 0, OrtMemTypeDefault) : host_memory()),
          allocator_(session_, memory_) {}

    const Graph& graph() const { return graph_; }

    // Inputs and outputs by name. What stays bound is copied to a GPU once.
    Ort::IoBinding binding() { return Ort::IoBinding(session_); }

    // A buffer where the engine computes: on the GPU, or in host memory.
    Ort::Value buffer(const std::vector<std::int64_t>& shape) {
        return Ort::Value::CreateTensor<float>(allocator_, shape.data(), shape.size());
    }

    void run(Ort::IoBinding& binding) { session_.Run(Ort::RunOptions(), binding); }

    // All outputs, in host memory, in the order of the manifest.
    std::vector<Ort::Value> run(const std::map<std::string, Ort::Value>& inputs) {
        Ort::IoBinding bound = binding();
        for (const auto& [name, value] : inputs) bound.BindInput(name.c_str(), value);
        for (const std::string& name : graph_.outputs) bound.BindOutput(name.c_str(), host_memory());
        run(bound);
        return bound.GetOutputValues();
    }

  private:
    static Ort::SessionOptions options(const Device& device) {
        Ort::SessionOptions options;
        if (device.threads > 0) options.SetIntraOpNumThreads(device.threads);
        if (device.cuda) {
            OrtCUDAProviderOptionsV2* cuda = nullptr;
            Ort::ThrowOnError(Ort::GetApi().CreateCUDAProviderOptions(&cuda));
            const std::unique_ptr<OrtCUDAProviderOptionsV2, void (*)(OrtCUDAProviderOptionsV2*)> owner(
                cuda, Ort::GetApi().ReleaseCUDAProviderOptions);
            const char* keys[] = {"use_tf32"};  // on by default, and not precise enough for the goldens
            const char* values[] = {"0"};
            Ort::ThrowOnError(Ort::GetApi().UpdateCUDAProviderOptions(cuda, keys, values, 1));
            options.AppendExecutionProvider_CUDA_V2(*cuda);
        }
        return options;
    }

    Graph graph_;
    Ort::Session session_;
    Ort::MemoryInfo memory_;
    Ort::Allocator allocator_;
};

}  // namespace latentrt
