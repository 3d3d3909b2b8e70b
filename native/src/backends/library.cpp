#include "library.hpp"

#include "../base/error.hpp"
#include "../base/utf8.hpp"

#include <dlfcn.h>

#include <charconv>
#include <cstdlib>
#include <map>
#include <mutex>
#include <new>

namespace lrt {

namespace {

constexpr const char* ENVIRONMENT = "LATENTRT_ONNXRUNTIME";
constexpr const char* USUAL = "libonnxruntime.so.1";

// Errors come as a status; what ONNX Runtime would print besides belongs to nobody.
void ORT_API_CALL silence(void*, OrtLoggingLevel, const char*, const char*, const char*, const char*) {}

std::string chosen(const std::string& name) {
    if (!name.empty()) return name;
    const char* from_environment = std::getenv(ENVIRONMENT);
    return from_environment != nullptr && *from_environment != '\0' ? from_environment : USUAL;
}

}  // namespace

const Library& Library::load(const std::string& name) {
    // Never destroyed: sessions may outlive the end of main, and ONNX Runtime's threads must not see its code go.
    static auto& mutex = *new std::mutex;
    static auto& loaded = *new std::map<const OrtApi*, std::unique_ptr<Library>>;
    const std::lock_guard<std::mutex> lock(mutex);
    std::unique_ptr<Library> library(new Library(chosen(name)));
    // Several names may lead to one file, whose table is the same.
    std::unique_ptr<Library>& kept = loaded[library->api_];
    if (kept == nullptr) {
        library->check(library->api_->CreateEnvWithCustomLogger(silence, nullptr, ORT_LOGGING_LEVEL_ERROR, "latentrt",
                                                                &library->env_),
                       "ONNX Runtime");
        library->check(library->api_->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &library->host_),
                       "ONNX Runtime");
        library->share_arena();
        kept = std::move(library);
    }
    return *kept;
}

Library::Library(const std::string& name) {
    void* handle = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) {
        const char* reason = dlerror();
        throw backend_error(std::string("ONNX Runtime cannot be loaded: ") + (reason == nullptr ? name : reason) +
                            ". Install it, and pass its file as `onnxruntime`, or in " + ENVIRONMENT);
    }
    // From here on the library stays: its threads may run.
    const auto base = reinterpret_cast<const OrtApiBase* (*)()>(dlsym(handle, "OrtGetApiBase"));
    if (base == nullptr) throw backend_error(name + " is not ONNX Runtime: it has no OrtGetApiBase");
    version_ = base()->GetVersionString();
    api_ = base()->GetApi(ORT_API_VERSION);
    if (api_ == nullptr)
        throw backend_error(name + " is ONNX Runtime " + version_ + ": expected 1." + std::to_string(ORT_API_VERSION) +
                            " or later");
}

int Library::minor() const {
    int number = 0;
    const std::size_t point = version_.find('.');
    if (point != std::string::npos)
        std::from_chars(version_.data() + point + 1, version_.data() + version_.size(), number);
    return number;
}

// With separate arenas, each session would keep the peak memory of its graph. The arena begins with one large block,
// which fits tensors of all sizes; pages of it are committed only when they are written.
void Library::share_arena() const {
    const char* keys[] = {"initial_chunk_size_bytes"};
    const std::size_t values[] = {(std::size_t{1} << 31) - (std::size_t{1} << 20)};
    OrtArenaCfg* config = nullptr;
    check(api_->CreateArenaCfgV2(keys, values, 1, &config), "ONNX Runtime");
    const Owned<OrtArenaCfg> owner(config, api_->ReleaseArenaCfg);
    // Fails where the program has registered one of its own, which serves as well.
    if (OrtStatus* status = api_->CreateAndRegisterAllocator(env_, host_, config)) api_->ReleaseStatus(status);
}

void Library::check(OrtStatus* status, const std::string& what) const {
    if (status == nullptr) return;
    const Owned<OrtStatus> owner(status, api_->ReleaseStatus);
    const std::string text = api_->GetErrorMessage(status);
    for (const char* sign :
         {"bad_alloc", "Failed to allocate", "failed to allocate", "out of memory", "pthread_create failed"})
        if (text.find(sign) != std::string::npos) throw std::bad_alloc();
    throw backend_error(what + ": " + std::string(first_points(text, 500)));
}

}  // namespace lrt
