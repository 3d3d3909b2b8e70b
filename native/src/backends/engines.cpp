#include "engines.hpp"

#include "../base/error.hpp"
#include "session_options.hpp"

namespace lrt {

Engines::Engines(const Library& library, const Bundle& bundle, Device device)
    : library_(library), bundle_(bundle), device_(std::move(device)) {
    const Manifest& manifest = bundle.manifest;
    if (device_.is_cpu() && (manifest.precision == "bf16" || manifest.vae_precision == "bf16"))
        throw backend_error(bundle.folder.string() +
                            " is a bf16 bundle, but ONNX Runtime has no bf16 kernels for CPUs: "
                            "export with --precision fp32, or use a GPU");
    // So that a provider that is not there is found here, not by the first draw.
    session_options(library, device_);
    // Whose first version with kernels for opset 23 is 1.23.
    if (manifest.opset >= 23 && library.minor() < 23 && library.version().rfind("1.", 0) == 0)
        throw backend_error(bundle.folder.string() + " has graphs of opset " + std::to_string(manifest.opset) +
                            ", which need ONNX Runtime 1.23 or later, and this is " + library.version() +
                            ": use a later one, or export with --opset 18");
    for (const auto& [name, graph] : manifest.graphs) slots_[name];
}

const Session& Engines::get(const std::string& graph) {
    Slot& slot = slots_.at(graph);
    // Where it throws, the next call tries again.
    std::call_once(slot.once, [&] { slot.session = std::make_unique<Session>(library_, bundle_, graph, device_); });
    return *slot.session;
}

std::string Engines::name() const { return "onnxruntime-" + device_.provider + " " + library_.version(); }

}  // namespace lrt
