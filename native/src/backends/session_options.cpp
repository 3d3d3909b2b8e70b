#include "session_options.hpp"

#include "cpu.hpp"

#include "../base/error.hpp"
#include "../base/utf8.hpp"

#include <algorithm>

namespace lrt {

namespace {

constexpr const char* PROVIDERS[] = {"cpu", "cuda", "tensorrt", "nv_tensorrt_rtx"};

using Pairs = std::vector<std::pair<std::string, std::string>>;

struct Texts {
    explicit Texts(const Pairs& pairs) {
        for (const auto& [key, value] : pairs) {
            keys.push_back(key.c_str());
            values.push_back(value.c_str());
        }
    }
    std::vector<const char*> keys, values;
};

// The caller's options, and ours where he has none.
Pairs provider_options(const Device& device) {
    Pairs options = device.options;
    const auto add = [&](const char* key, const std::string& value) {
        const auto same = [&](const auto& option) { return option.first == key; };
        if (std::none_of(options.begin(), options.end(), same)) options.emplace_back(key, value);
    };
    add("device_id", std::to_string(device.number));
    // On by default, and not precise enough for the goldens of an fp32 bundle.
    if (device.provider == "cuda") add("use_tf32", "0");
    return options;
}

void append_cuda(const Library& library, OrtSessionOptions* options, const Texts& texts) {
    const OrtApi& api = library.api();
    OrtCUDAProviderOptionsV2* cuda = nullptr;
    library.check(api.CreateCUDAProviderOptions(&cuda), "the provider cuda");
    const Owned<OrtCUDAProviderOptionsV2> owner(cuda, api.ReleaseCUDAProviderOptions);
    library.check(api.UpdateCUDAProviderOptions(cuda, texts.keys.data(), texts.values.data(), texts.keys.size()),
                  "options of the provider cuda");
    library.check(api.SessionOptionsAppendExecutionProvider_CUDA_V2(options, cuda), "the provider cuda");
}

void append_tensorrt(const Library& library, OrtSessionOptions* options, const Texts& texts) {
    const OrtApi& api = library.api();
    OrtTensorRTProviderOptionsV2* tensorrt = nullptr;
    library.check(api.CreateTensorRTProviderOptions(&tensorrt), "the provider tensorrt");
    const Owned<OrtTensorRTProviderOptionsV2> owner(tensorrt, api.ReleaseTensorRTProviderOptions);
    library.check(
        api.UpdateTensorRTProviderOptions(tensorrt, texts.keys.data(), texts.values.data(), texts.keys.size()),
        "options of the provider tensorrt");
    library.check(api.SessionOptionsAppendExecutionProvider_TensorRT_V2(options, tensorrt), "the provider tensorrt");
}

void append_provider(const Library& library, OrtSessionOptions* options, const Device& device) {
    const Pairs pairs = provider_options(device);
    const Texts texts(pairs);
    if (device.provider == "cuda") return append_cuda(library, options, texts);
    if (device.provider == "tensorrt") {
        append_tensorrt(library, options, texts);
        // What TensorRT does not take runs on CUDA.
        return append_cuda(library, options, Texts({{"device_id", std::to_string(device.number)}, {"use_tf32", "0"}}));
    }
    library.check(library.api().SessionOptionsAppendExecutionProvider(options, "NvTensorRtRtx", texts.keys.data(),
                                                                      texts.values.data(), texts.keys.size()),
                  "the provider nv_tensorrt_rtx");
}

}  // namespace

void require_device(const Device& device) {
    const auto same = [&](const char* name) { return device.provider == name; };
    if (std::none_of(std::begin(PROVIDERS), std::end(PROVIDERS), same))
        throw input_error("provider=" + shown(device.provider) +
                          ": expected one of 'cpu', 'cuda', 'tensorrt', 'nv_tensorrt_rtx'");
    if (device.is_cpu() && !device.options.empty())
        throw input_error("the provider cpu takes no options: leave out provider_keys");
    if (device.number < 0) throw input_error("device=" + std::to_string(device.number) + ": expected 0 or above");
    if (device.threads < 0 || device.threads > 4096)
        throw input_error("threads=" + std::to_string(device.threads) + ": expected 0 to 4096; 0 is one for each core");
    for (const auto& [key, value] : device.options)
        // A graph that is captured reads the same addresses at every replay; here each call has buffers of its own.
        if (key.find("cuda_graph") != std::string::npos && value != "0")
            throw input_error("the option " + shown(key) +
                              " is not covered: inputs of a call are at other addresses than those of the last one");
}

Owned<OrtSessionOptions> session_options(const Library& library, const Device& device) {
    const OrtApi& api = library.api();
    OrtSessionOptions* options = nullptr;
    library.check(api.CreateSessionOptions(&options), "session options");
    Owned<OrtSessionOptions> owner(options, api.ReleaseSessionOptions);
    const auto set = [&](OrtStatus* status) { library.check(status, "session options"); };
    // Warnings only concern nodes placed on the CPU on purpose; errors come as a status.
    set(api.SetSessionLogSeverityLevel(options, ORT_LOGGING_LEVEL_ERROR));
    // Every session has its own threads, which must not spin while another session runs.
    set(api.AddSessionConfigEntry(options, "session.force_spinning_stop", "1"));
    if (device.threads > 0) set(api.SetIntraOpNumThreads(options, device.threads));
    if (device.is_cpu()) {
        set(api.AddSessionConfigEntry(options, "session.use_env_allocators", "1"));
        if (int8_overflows())  // quantized layers are computed in float32
            set(api.AddSessionConfigEntry(options, "session.disable_quant_qdq", "1"));
        // A memory pattern allocates one block for a whole run, besides the blocks of the first run.
        set(api.DisableMemPattern(options));
    } else {
        try {
            append_provider(library, options, device);
        } catch (const Error& error) {
            throw Error(error.status(), std::string(error.what()) +
                                            ". GPUs need a library with this provider, such as "
                                            "that of the Python wheel onnxruntime-gpu");
        }
    }
    return owner;
}

}  // namespace lrt
