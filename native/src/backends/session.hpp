// One graph of a bundle on ONNX Runtime.
#pragma once

#include "../bundle/bundle.hpp"
#include "library.hpp"
#include "value.hpp"

#include <map>
#include <string>
#include <utility>
#include <vector>

namespace lrt {

// Where and how graphs run.
struct Device {
    std::string provider = "cpu";                              // cpu, cuda, tensorrt, nv_tensorrt_rtx
    int number = 0;                                            // of the GPU
    int threads = 0;                                           // of ONNX Runtime on the CPU; 0: one for each core
    std::vector<std::pair<std::string, std::string>> options;  // of the provider, as ONNX Runtime names them

    bool is_cpu() const { return provider == "cpu"; }
};

// Throws for an unknown provider, and for options that cannot be used.
void require_device(const Device& device);

class Binding;

// Thread-safe: each thread has bindings of its own.
class Session {
  public:
    // Loads the graph from its path, so that weights are mapped and read once. Throws for a file whose tensors are not
    // those that the manifest says.
    Session(const Library& library, const Bundle& bundle, const std::string& graph, const Device& device);

    const Graph& spec() const { return *spec_; }
    const Library& library() const { return *library_; }

    // All outputs, in host memory, in the order of the manifest. Inputs of other shapes than the graph's throw.
    std::vector<Value> run(const std::vector<std::pair<std::string, const Value*>>& inputs) const;

    // A buffer where the graph computes: on the GPU, or in host memory.
    Value buffer(const Shape& shape, ONNXTensorElementDataType type) const;

  private:
    friend class Binding;
    struct Found {
        std::string name;
        ONNXTensorElementDataType type;
        Shape shape;
    };
    void require_tensors() const;
    void require_side(bool inputs, const std::vector<TensorSpec>& specs) const;
    Found found_at(bool inputs, std::size_t index) const;
    static bool is_as_said(const Found& found, const TensorSpec& spec, bool is_input);
    // The sizes of all symbols.
    Sizes required_shapes(const std::vector<std::pair<std::string, const Value*>>& inputs) const;
    void require_output(const TensorSpec& spec, const Value& value, const Sizes& sizes) const;
    const std::string& name() const { return spec_->file; }

    const Library* library_;
    const Graph* spec_;
    Owned<OrtSession> session_;
    Owned<OrtMemoryInfo> memory_;
    Owned<OrtAllocator> allocator_;
};

// Inputs and outputs of one caller, bound by name. What is bound is read at each run, on a GPU at each bind.
class Binding {
  public:
    explicit Binding(const Session& session);

    void input(const std::string& name, const Value& value);
    void output(const std::string& name, const Value& value);
    void run();

  private:
    const Session* session_;
    Owned<OrtIoBinding> binding_;
};

}  // namespace lrt
