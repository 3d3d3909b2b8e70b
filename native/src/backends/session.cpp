#include "session.hpp"

#include "../base/error.hpp"
#include "one_folder.hpp"
#include "session_options.hpp"

#include <algorithm>
#include <new>

namespace lrt {

namespace {

// Name of a provider's device memory.
const char* memory_name(const Device& device) { return device.is_cpu() ? "Cpu" : "Cuda"; }

std::string text_of(const Shape& shape) {
    std::string text = "(";
    for (const std::int64_t side : shape) text += (text.size() > 1 ? ", " : "") + std::to_string(side);
    return text + ")";
}

}  // namespace

Session::Session(const Library& library, const Bundle& bundle, const std::string& graph, const Device& device)
    : library_(&library), spec_(&bundle.graph(graph)) {
    const OrtApi& api = library.api();
    const std::string what = bundle.file(name()).string();
    const Owned<OrtSessionOptions> options = session_options(library, device);
    const OneFolder folder(bundle.file(name()), bundle.file(name() + ".data"));
    OrtSession* session = nullptr;
    OrtStatus* status = api.CreateSession(library.env(), folder.graph().c_str(), options.get(), &session);
    library.check(status, "onnxruntime cannot load " + what);
    session_ = Owned<OrtSession>(session, api.ReleaseSession);

    OrtMemoryInfo* memory = nullptr;
    library.check(api.CreateMemoryInfo(memory_name(device), device.is_cpu() ? OrtArenaAllocator : OrtDeviceAllocator,
                                       device.number, OrtMemTypeDefault, &memory),
                  what);
    memory_ = Owned<OrtMemoryInfo>(memory, api.ReleaseMemoryInfo);
    OrtAllocator* allocator = nullptr;
    library.check(api.CreateAllocator(session, memory, &allocator), what);
    allocator_ = Owned<OrtAllocator>(allocator, api.ReleaseAllocator);
    require_tensors();
}

void Session::require_tensors() const {
    require_side(true, spec_->inputs);
    require_side(false, spec_->outputs);
}

// Names, types, number of sizes, and the sizes that are fixed.
void Session::require_side(bool inputs, const std::vector<TensorSpec>& specs) const {
    const OrtApi& api = library_->api();
    const OrtSession* session = session_.get();
    const std::string what = name() + " has other tensors than bundle.json says";
    std::size_t count = 0;
    library_->check(inputs ? api.SessionGetInputCount(session, &count) : api.SessionGetOutputCount(session, &count),
                    what);
    bool fits = count == specs.size();
    for (std::size_t i = 0; fits && i < count; ++i) {
        const Found found = found_at(inputs, i);
        const auto spec = std::find_if(specs.begin(), specs.end(), [&](const auto& s) { return s.name == found.name; });
        fits = spec != specs.end() && is_as_said(found, *spec, inputs);
    }
    if (!fits) throw bundle_error(what + ": export the checkpoint again");
}

// A tensor of the file. Sizes that depend on the call are negative.
Session::Found Session::found_at(bool inputs, std::size_t index) const {
    const OrtApi& api = library_->api();
    const OrtSession* session = session_.get();
    OrtAllocator* host = nullptr;
    library_->check(api.GetAllocatorWithDefaultOptions(&host), name());
    char* text = nullptr;
    library_->check(inputs ? api.SessionGetInputName(session, index, host, &text)
                           : api.SessionGetOutputName(session, index, host, &text),
                    name());
    Found found{text, ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED, {}};
    host->Free(host, text);
    OrtTypeInfo* info = nullptr;
    library_->check(inputs ? api.SessionGetInputTypeInfo(session, index, &info)
                           : api.SessionGetOutputTypeInfo(session, index, &info),
                    name());
    const Owned<OrtTypeInfo> owner(info, api.ReleaseTypeInfo);
    const OrtTensorTypeAndShapeInfo* tensor = nullptr;
    library_->check(api.CastTypeInfoToTensorInfo(info, &tensor), name());
    if (tensor == nullptr) return found;
    std::size_t rank = 0;
    library_->check(api.GetTensorElementType(tensor, &found.type), name());
    library_->check(api.GetDimensionsCount(tensor, &rank), name());
    found.shape.resize(rank);
    library_->check(api.GetDimensions(tensor, found.shape.data(), rank), name());
    return found;
}

bool Session::is_as_said(const Found& found, const TensorSpec& spec, bool is_input) {
    if (found.type != element_type(spec.dtype)) return false;
    if (!is_input && found.shape.empty()) return true;  // its sizes are not inferred
    if (found.shape.size() != spec.shape.size()) return false;
    for (std::size_t axis = 0; axis < found.shape.size(); ++axis) {
        const Dimension& said = spec.shape[axis];
        const bool fixed = said.symbols.empty();
        if (found.shape[axis] >= 0 && (fixed ? found.shape[axis] != said.factor : is_input)) return false;
    }
    return true;
}

Sizes Session::required_shapes(const std::vector<std::pair<std::string, const Value*>>& inputs) const {
    Sizes sizes;
    for (const TensorSpec& spec : spec_->inputs) {
        const auto given =
            std::find_if(inputs.begin(), inputs.end(), [&](const auto& i) { return i.first == spec.name; });
        if (given == inputs.end()) throw backend_error(name() + " needs the input " + spec.name);
        const Shape shape = given->second->shape();
        bool fits = shape.size() == spec.shape.size();
        for (std::size_t axis = 0; fits && axis < shape.size(); ++axis) {
            const Dimension& said = spec.shape[axis];
            // Products of symbols are inputs of `denoise` alone, which is not run by this function.
            fits = said.symbols.size() <= 1;
            if (said.symbols.size() == 1) sizes.emplace(said.symbols[0], shape[axis] / said.factor);
        }
        if (!fits || shape_at(spec, sizes) != shape)
            throw backend_error(spec.name + " of " + name() + " has the shape " + text_of(shape) +
                                ", which does not fit the graph");
    }
    return sizes;
}

// A graph may say nothing of the sizes of its outputs until it runs.
void Session::require_output(const TensorSpec& spec, const Value& value, const Sizes& sizes) const {
    if (value.get() == nullptr) throw backend_error(name() + " returned nothing as " + spec.name);
    const Shape shape = value.shape();
    if (shape != shape_at(spec, sizes) || value.type() != element_type(spec.dtype))
        throw bundle_error(spec.name + " of " + name() + " has the shape " + text_of(shape) +
                           ", or a type, that bundle.json does not say: export the checkpoint again");
}

std::vector<Value> Session::run(const std::vector<std::pair<std::string, const Value*>>& inputs) const {
    const Sizes sizes = required_shapes(inputs);
    std::vector<const char*> names, outputs;
    std::vector<const OrtValue*> values;
    for (const auto& [input, value] : inputs) {
        names.push_back(input.c_str());
        values.push_back(value->get());
    }
    for (const TensorSpec& spec : spec_->outputs) outputs.push_back(spec.name.c_str());
    std::vector<OrtValue*> results(outputs.size(), nullptr);
    OrtStatus* status = library_->api().Run(session_.get(), nullptr, names.data(), values.data(), values.size(),
                                            outputs.data(), outputs.size(), results.data());
    std::vector<Value> owned;
    for (OrtValue* result : results) owned.emplace_back(*library_, result);
    library_->check(status, name() + " failed");
    for (std::size_t i = 0; i < owned.size(); ++i) require_output(spec_->outputs[i], owned[i], sizes);
    return owned;
}

Value Session::buffer(const Shape& shape, ONNXTensorElementDataType type) const {
    OrtValue* value = nullptr;
    library_->check(library_->api().CreateTensorAsOrtValue(allocator_.get(), shape.data(), shape.size(), type, &value),
                    name());
    return {*library_, value};
}

Binding::Binding(const Session& session) : session_(&session) {
    OrtIoBinding* binding = nullptr;
    const Library& library = session.library();
    library.check(library.api().CreateIoBinding(session.session_.get(), &binding), session.name());
    binding_ = Owned<OrtIoBinding>(binding, library.api().ReleaseIoBinding);
}

void Binding::input(const std::string& name, const Value& value) {
    const Library& library = session_->library();
    library.check(library.api().BindInput(binding_.get(), name.c_str(), value.get()), session_->name());
}

void Binding::output(const std::string& name, const Value& value) {
    const Library& library = session_->library();
    library.check(library.api().BindOutput(binding_.get(), name.c_str(), value.get()), session_->name());
}

void Binding::run() {
    const Library& library = session_->library();
    library.check(library.api().RunWithBinding(session_->session_.get(), nullptr, binding_.get()),
                  session_->name() + " failed");
}

}  // namespace lrt
