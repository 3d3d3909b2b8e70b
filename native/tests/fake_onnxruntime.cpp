// A stand-in for ONNX Runtime: sessions know the shapes of a bundle's graphs, and outputs are made of the inputs' sums.
// It is compiled as the library is, with its sanitizers, so that they see both sides. Functions that the
// library does not call are missing.
#include "../src/bundle/bundle.hpp"

#include <onnxruntime_c_api.h>

#include <chrono>
#include <cstring>
#include <memory>
#include <mutex>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

namespace {

std::size_t size_of(ONNXTensorElementDataType type) {
    switch (type) {
        case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64:
        case ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE: return 8;
        case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16:
        case ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16: return 2;
        case ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8: return 1;
        default: return 4;
    }
}

ONNXTensorElementDataType type_of(const std::string& dtype) {
    if (dtype == "int64") return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
    if (dtype == "int32") return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;
    if (dtype == "uint8") return ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;
    if (dtype == "float16") return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
    return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
}

}  // namespace

struct OrtStatus {
    std::string text;
};
struct OrtEnv {
    int users = 0;
};
struct OrtMemoryInfo {};
struct OrtArenaCfg {};
struct OrtSessionOptions {};
struct OrtTensorTypeAndShapeInfo {
    ONNXTensorElementDataType type;
    std::vector<std::int64_t> shape;
};
struct OrtTypeInfo {
    OrtTensorTypeAndShapeInfo tensor;
};
struct OrtValue {
    OrtTensorTypeAndShapeInfo info;
    void* data;
    std::vector<std::byte> own;

    std::size_t bytes() const {
        return std::accumulate(info.shape.begin(), info.shape.end(), size_of(info.type),
                               [](std::size_t all, std::int64_t side) { return all * static_cast<std::size_t>(side); });
    }
};
struct OrtSession {
    lrt::Graph graph;
    bool is_decoder = false;
};
struct OrtIoBinding {
    const OrtSession* session;
    std::map<std::string, const OrtValue*> inputs;
    std::map<std::string, OrtValue*> outputs;
};

namespace {

using Inputs = std::map<std::string, const OrtValue*>;

OrtStatus* fail(const std::string& text) { return new OrtStatus{text}; }

std::vector<std::int64_t> sizes(const lrt::TensorSpec& spec, const lrt::Sizes& known) {
    return lrt::shape_at(spec, known);
}

lrt::Sizes sizes_of(const OrtSession& session, const Inputs& inputs) {
    lrt::Sizes known;
    for (const lrt::TensorSpec& spec : session.graph.inputs) {
        const OrtValue* value = inputs.at(spec.name);
        for (std::size_t axis = 0; axis < spec.shape.size(); ++axis)
            if (spec.shape[axis].symbols.size() == 1)
                known.emplace(spec.shape[axis].symbols[0], value->info.shape[axis] / spec.shape[axis].factor);
    }
    return known;
}

// Every input is read and every output written, so that a sanitizer sees both; values are small and depend on the first
// input.
void compute(const OrtSession& session, const Inputs& inputs, const std::map<std::string, OrtValue*>& outputs) {
    std::uint32_t sum = 0;
    for (const auto& [name, value] : inputs) {
        const auto* bytes = static_cast<const unsigned char*>(value->data);
        for (std::size_t i = 0; i < value->bytes(); ++i) sum += bytes[i];
    }
    for (const auto& [name, value] : outputs) {
        std::memset(value->data, 0, value->bytes());
        if (session.is_decoder && name == "images")
            std::memset(value->data, static_cast<int>(sum & 255), value->bytes());
        if (value->info.type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT) {
            auto* values = static_cast<float*>(value->data);
            for (std::size_t i = 0; i < value->bytes() / 4; ++i) values[i] = static_cast<float>(sum % 101) / 101.0f;
        }
    }
    std::this_thread::sleep_for(std::chrono::microseconds(200));
}

const char* ORT_API_CALL message(const OrtStatus* status) noexcept { return status->text.c_str(); }
void ORT_API_CALL release_status(OrtStatus* status) noexcept { delete status; }

std::mutex mutex;
OrtEnv environment;

OrtStatus* ORT_API_CALL create_env(OrtLoggingFunction, void*, OrtLoggingLevel, const char*, OrtEnv** out) noexcept {
    const std::lock_guard<std::mutex> lock(mutex);
    ++environment.users;
    *out = &environment;
    return nullptr;
}

OrtStatus* ORT_API_CALL cpu_memory(OrtAllocatorType, OrtMemType, OrtMemoryInfo** out) noexcept {
    *out = new OrtMemoryInfo;
    return nullptr;
}
OrtStatus* ORT_API_CALL memory(const char*, OrtAllocatorType, int, OrtMemType, OrtMemoryInfo** out) noexcept {
    *out = new OrtMemoryInfo;
    return nullptr;
}
void ORT_API_CALL release_memory(OrtMemoryInfo* info) noexcept { delete info; }

OrtStatus* ORT_API_CALL arena(const char* const*, const std::size_t*, std::size_t, OrtArenaCfg** out) noexcept {
    *out = new OrtArenaCfg;
    return nullptr;
}
void ORT_API_CALL release_arena(OrtArenaCfg* config) noexcept { delete config; }
OrtStatus* ORT_API_CALL register_allocator(OrtEnv*, const OrtMemoryInfo*, const OrtArenaCfg*) noexcept {
    return fail("an allocator is registered already");
}

OrtStatus* ORT_API_CALL create_options(OrtSessionOptions** out) noexcept {
    *out = new OrtSessionOptions;
    return nullptr;
}
void ORT_API_CALL release_options(OrtSessionOptions* options) noexcept { delete options; }
OrtStatus* ORT_API_CALL set_level(OrtSessionOptions*, int) noexcept { return nullptr; }
OrtStatus* ORT_API_CALL set_threads(OrtSessionOptions*, int) noexcept { return nullptr; }
OrtStatus* ORT_API_CALL add_entry(OrtSessionOptions*, const char*, const char*) noexcept { return nullptr; }
OrtStatus* ORT_API_CALL no_pattern(OrtSessionOptions*) noexcept { return nullptr; }

OrtStatus* ORT_API_CALL create_session(const OrtEnv*, const ORTCHAR_T* path, const OrtSessionOptions*,
                                       OrtSession** out) noexcept {
    try {
        const lrt::Path file(path);
        const lrt::Manifest manifest = lrt::manifest_from(lrt::bytes_of(file.parent_path() / "bundle.json", 1 << 28));
        for (const auto& [name, graph] : manifest.graphs)
            if (graph.file == file.filename().string()) {
                *out = new OrtSession{graph, name == "vae_decoder"};
                return nullptr;
            }
        return fail("no such graph");
    } catch (const std::exception& error) {
        return fail(error.what());
    }
}
void ORT_API_CALL release_session(OrtSession* session) noexcept { delete session; }

OrtStatus* ORT_API_CALL input_count(const OrtSession* session, std::size_t* out) noexcept {
    *out = session->graph.inputs.size();
    return nullptr;
}
OrtStatus* ORT_API_CALL output_count(const OrtSession* session, std::size_t* out) noexcept {
    *out = session->graph.outputs.size();
    return nullptr;
}

OrtStatus* named(const lrt::TensorSpec& spec, OrtAllocator* allocator, char** out) {
    *out = static_cast<char*>(allocator->Alloc(allocator, spec.name.size() + 1));
    std::memcpy(*out, spec.name.c_str(), spec.name.size() + 1);
    return nullptr;
}
OrtStatus* ORT_API_CALL input_name(const OrtSession* session, std::size_t index, OrtAllocator* allocator,
                                   char** out) noexcept {
    return named(session->graph.inputs[index], allocator, out);
}
OrtStatus* ORT_API_CALL output_name(const OrtSession* session, std::size_t index, OrtAllocator* allocator,
                                    char** out) noexcept {
    return named(session->graph.outputs[index], allocator, out);
}

OrtStatus* typed(const lrt::TensorSpec& spec, OrtTypeInfo** out) {
    *out = new OrtTypeInfo{{type_of(spec.dtype), {}}};
    for (const lrt::Dimension& size : spec.shape)
        (*out)->tensor.shape.push_back(size.symbols.empty() ? size.factor : -1);
    return nullptr;
}
OrtStatus* ORT_API_CALL input_type(const OrtSession* session, std::size_t index, OrtTypeInfo** out) noexcept {
    return typed(session->graph.inputs[index], out);
}
OrtStatus* ORT_API_CALL output_type(const OrtSession* session, std::size_t index, OrtTypeInfo** out) noexcept {
    return typed(session->graph.outputs[index], out);
}
void ORT_API_CALL release_type(OrtTypeInfo* info) noexcept { delete info; }
OrtStatus* ORT_API_CALL tensor_of(const OrtTypeInfo* info, const OrtTensorTypeAndShapeInfo** out) noexcept {
    *out = &info->tensor;
    return nullptr;
}
OrtStatus* ORT_API_CALL element_type(const OrtTensorTypeAndShapeInfo* info, ONNXTensorElementDataType* out) noexcept {
    *out = info->type;
    return nullptr;
}
OrtStatus* ORT_API_CALL rank(const OrtTensorTypeAndShapeInfo* info, std::size_t* out) noexcept {
    *out = info->shape.size();
    return nullptr;
}
OrtStatus* ORT_API_CALL dimensions(const OrtTensorTypeAndShapeInfo* info, std::int64_t* out,
                                   std::size_t count) noexcept {
    std::copy_n(info->shape.begin(), count, out);
    return nullptr;
}
void ORT_API_CALL release_info(OrtTensorTypeAndShapeInfo* info) noexcept { delete info; }

void* ORT_API_CALL allocate(OrtAllocator*, std::size_t size) noexcept { return std::malloc(size); }
void ORT_API_CALL release_block(OrtAllocator*, void* block) noexcept { std::free(block); }
OrtAllocator host{ORT_API_VERSION, allocate, release_block, nullptr, nullptr};
OrtStatus* ORT_API_CALL default_allocator(OrtAllocator** out) noexcept {
    *out = &host;
    return nullptr;
}
OrtStatus* ORT_API_CALL create_allocator(const OrtSession*, const OrtMemoryInfo*, OrtAllocator** out) noexcept {
    *out = &host;
    return nullptr;
}
void ORT_API_CALL release_allocator(OrtAllocator*) noexcept {}

OrtStatus* ORT_API_CALL value_over(const OrtMemoryInfo*, void* data, std::size_t, const std::int64_t* shape,
                                   std::size_t count, ONNXTensorElementDataType type, OrtValue** out) noexcept {
    *out = new OrtValue{{type, {shape, shape + count}}, data, {}};
    return nullptr;
}
OrtStatus* ORT_API_CALL new_value(OrtAllocator*, const std::int64_t* shape, std::size_t count,
                                  ONNXTensorElementDataType type, OrtValue** out) noexcept {
    *out = new OrtValue{{type, {shape, shape + count}}, nullptr, {}};
    (*out)->own.resize((*out)->bytes());
    (*out)->data = (*out)->own.data();
    return nullptr;
}
void ORT_API_CALL release_value(OrtValue* value) noexcept { delete value; }
OrtStatus* ORT_API_CALL info_of(const OrtValue* value, OrtTensorTypeAndShapeInfo** out) noexcept {
    *out = new OrtTensorTypeAndShapeInfo(value->info);
    return nullptr;
}
OrtStatus* ORT_API_CALL data_of(OrtValue* value, void** out) noexcept {
    *out = value->data;
    return nullptr;
}

OrtStatus* ORT_API_CALL run(OrtSession* session, const OrtRunOptions*, const char* const* names,
                            const OrtValue* const* values, std::size_t count, const char* const* output_names,
                            std::size_t outputs, OrtValue** results) noexcept {
    Inputs inputs;
    for (std::size_t i = 0; i < count; ++i) inputs[names[i]] = values[i];
    const lrt::Sizes known = sizes_of(*session, inputs);
    std::map<std::string, OrtValue*> made;
    for (std::size_t i = 0; i < outputs; ++i)
        for (const lrt::TensorSpec& spec : session->graph.outputs)
            if (spec.name == output_names[i]) {
                const std::vector<std::int64_t> shape = sizes(spec, known);
                new_value(&host, shape.data(), shape.size(), type_of(spec.dtype), &results[i]);
                made[spec.name] = results[i];
            }
    compute(*session, inputs, made);
    return nullptr;
}

OrtStatus* ORT_API_CALL create_binding(OrtSession* session, OrtIoBinding** out) noexcept {
    *out = new OrtIoBinding{session, {}, {}};
    return nullptr;
}
void ORT_API_CALL release_binding(OrtIoBinding* binding) noexcept { delete binding; }
OrtStatus* ORT_API_CALL bind_input(OrtIoBinding* binding, const char* name, const OrtValue* value) noexcept {
    binding->inputs[name] = value;
    return nullptr;
}
OrtStatus* ORT_API_CALL bind_output(OrtIoBinding* binding, const char* name, const OrtValue* value) noexcept {
    binding->outputs[name] = const_cast<OrtValue*>(value);
    return nullptr;
}
OrtStatus* ORT_API_CALL run_binding(OrtSession* session, const OrtRunOptions*, const OrtIoBinding* binding) noexcept {
    if (binding->inputs.size() != session->graph.inputs.size()) return fail("an input is not bound");
    compute(*session, binding->inputs, binding->outputs);
    return nullptr;
}

OrtApi table() {
    OrtApi api{};
    api.GetErrorMessage = message;
    api.ReleaseStatus = release_status;
    api.CreateEnvWithCustomLogger = create_env;
    api.CreateCpuMemoryInfo = cpu_memory;
    api.CreateMemoryInfo = memory;
    api.ReleaseMemoryInfo = release_memory;
    api.CreateArenaCfgV2 = arena;
    api.ReleaseArenaCfg = release_arena;
    api.CreateAndRegisterAllocator = register_allocator;
    api.CreateSessionOptions = create_options;
    api.ReleaseSessionOptions = release_options;
    api.SetSessionLogSeverityLevel = set_level;
    api.SetIntraOpNumThreads = set_threads;
    api.AddSessionConfigEntry = add_entry;
    api.DisableMemPattern = no_pattern;
    api.CreateSession = create_session;
    api.ReleaseSession = release_session;
    api.SessionGetInputCount = input_count;
    api.SessionGetOutputCount = output_count;
    api.SessionGetInputName = input_name;
    api.SessionGetOutputName = output_name;
    api.SessionGetInputTypeInfo = input_type;
    api.SessionGetOutputTypeInfo = output_type;
    api.ReleaseTypeInfo = release_type;
    api.CastTypeInfoToTensorInfo = tensor_of;
    api.GetTensorElementType = element_type;
    api.GetDimensionsCount = rank;
    api.GetDimensions = dimensions;
    api.ReleaseTensorTypeAndShapeInfo = release_info;
    api.GetAllocatorWithDefaultOptions = default_allocator;
    api.CreateAllocator = create_allocator;
    api.ReleaseAllocator = release_allocator;
    api.CreateTensorWithDataAsOrtValue = value_over;
    api.CreateTensorAsOrtValue = new_value;
    api.ReleaseValue = release_value;
    api.GetTensorTypeAndShape = info_of;
    api.GetTensorMutableData = data_of;
    api.Run = run;
    api.CreateIoBinding = create_binding;
    api.ReleaseIoBinding = release_binding;
    api.BindInput = bind_input;
    api.BindOutput = bind_output;
    api.RunWithBinding = run_binding;
    return api;
}

const OrtApi* ORT_API_CALL api_of(std::uint32_t version) noexcept {
    static const OrtApi api = table();
    return version <= ORT_API_VERSION ? &api : nullptr;
}
const char* ORT_API_CALL version() noexcept { return "0.0.0-fake"; }
const OrtApiBase base{api_of, version};

}  // namespace

extern "C" __attribute__((visibility("default"))) const OrtApiBase* ORT_API_CALL OrtGetApiBase() noexcept {
    return &base;
}
