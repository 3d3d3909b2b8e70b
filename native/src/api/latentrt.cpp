// The functions of the C header: structs in, handles out. All work is done by lrt::Pipeline.
#include "../request/given_texts.hpp"
#include "handles.hpp"
#include "images.hpp"
#include "structs.hpp"

#include <cstring>
#include <utility>

struct latentrt_pipeline {
    lrt::Pipeline pipeline;
};

struct latentrt_step {
    lrt::Step& step;
};

namespace lrt {

namespace {

Device device_of(const latentrt_open_options& options) {
    Device device;
    if (options.provider.data != nullptr) device.provider = text_given(options.provider, "provider");
    device.number = options.device;
    device.threads = options.threads;
    if (options.provider_options_count != 0 && (options.provider_keys == nullptr || options.provider_values == nullptr))
        throw input_error("provider_options_count is set: pass provider_keys and provider_values");
    for (std::size_t i = 0; i < options.provider_options_count; ++i)
        device.options.emplace_back(text_given(options.provider_keys[i], "provider_keys"),
                                    text_given(options.provider_values[i], "provider_values"));
    return device;
}

std::vector<std::string> packs_of(const latentrt_open_options& options) {
    if (options.plans_count != 0 && options.plans == nullptr) throw input_error("plans_count is set: pass plans");
    std::vector<std::string> packs;
    for (std::size_t i = 0; i < options.plans_count; ++i) packs.push_back(text_given(options.plans[i], "plans"));
    return packs;
}

// A draw or a verification that latentrt_close waits for.
class Entered {
  public:
    explicit Entered(latentrt_pipeline* pipeline) : pipeline_(pipeline) {
        if (pipeline == nullptr) throw input_error("pipeline is NULL");
        pipeline->pipeline.enter();
    }
    ~Entered() { pipeline_->pipeline.leave(); }
    Entered(const Entered&) = delete;
    Entered& operator=(const Entered&) = delete;

  private:
    latentrt_pipeline* pipeline_;
};

template <typename T>
void require(T* pointer, const char* name) {
    if (pointer == nullptr) throw input_error(std::string(name) + " is NULL");
}

}  // namespace

}  // namespace lrt

using lrt::guarded;

uint32_t latentrt_abi_version(void) { return LATENTRT_ABI_VERSION; }

const char* latentrt_version(void) { return LATENTRT_VERSION; }

latentrt_status latentrt_open(const char* bundle, const latentrt_open_options* options, latentrt_pipeline** out,
                              latentrt_error** error) {
    if (out != nullptr) *out = nullptr;
    return guarded(error, [&] {
        lrt::require(out, "out");
        lrt::require(bundle, "bundle");
        const auto given = lrt::completed(options, "latentrt_open_options");
        lrt::Device device = lrt::device_of(given);
        lrt::require_device(device);
        *out = new latentrt_pipeline{{bundle, lrt::text_given(given.onnxruntime, "onnxruntime"), std::move(device),
                                      lrt::packs_of(given), lrt::Log(given.log, given.log_user)}};
    });
}

void latentrt_close(latentrt_pipeline* pipeline) {
    if (pipeline == nullptr) return;
    pipeline->pipeline.wait_until_left();
    delete pipeline;
}

const char* latentrt_backend(const latentrt_pipeline* pipeline) {
    return pipeline == nullptr ? "" : pipeline->pipeline.backend().c_str();
}

const char* latentrt_scheduler_name(const latentrt_pipeline* pipeline, size_t index) {
    if (pipeline == nullptr) return nullptr;
    for (const std::string& name : pipeline->pipeline.packs().names())
        if (!name.empty() && index-- == 0) return name.c_str();  // "" is the checkpoint's own
    return nullptr;
}

int32_t latentrt_default_height(const latentrt_pipeline* pipeline) {
    return pipeline == nullptr ? 0 : static_cast<int32_t>(pipeline->pipeline.manifest().defaults.height);
}

int32_t latentrt_default_width(const latentrt_pipeline* pipeline) {
    return pipeline == nullptr ? 0 : static_cast<int32_t>(pipeline->pipeline.manifest().defaults.width);
}

latentrt_status latentrt_draw(latentrt_pipeline* pipeline, const latentrt_request* request, latentrt_on_step on_step,
                              void* user, latentrt_images** out, latentrt_error** error) {
    if (out != nullptr) *out = nullptr;
    return guarded(error, [&] {
        lrt::require(out, "out");
        lrt::require(request, "request");
        const lrt::Entered entered(pipeline);
        const auto given = lrt::completed(request, "latentrt_request");
        const lrt::OnStep each = [&](lrt::Step& step) {
            const latentrt_step handle{step};
            return on_step == nullptr || on_step(&handle, user) != 0;
        };
        const lrt::GivenPlan* plan = given.plan == nullptr ? nullptr : &given.plan->given;
        const std::atomic<bool>* cancelled = given.call == nullptr ? nullptr : &given.call->cancelled;
        *out = new latentrt_images(pipeline->pipeline.draw(given, plan, cancelled, each));
    });
}

latentrt_status latentrt_verify(latentrt_pipeline* pipeline, latentrt_verification* out, latentrt_error** error) {
    return guarded(error, [&] {
        const lrt::Entered entered(pipeline);
        auto filled = lrt::completed(out, "latentrt_verification");
        const lrt::Verification found = pipeline->pipeline.verify();
        const lrt::Golden& golden = *pipeline->pipeline.manifest().golden;
        const std::size_t size = filled.struct_size;
        filled = {size,
                  found.ids_equal ? 1 : 0,
                  found.embedding_error,
                  golden.embedding_tolerance,
                  found.latents_error,
                  golden.latents_tolerance,
                  found.psnr,
                  golden.psnr_floor};
        if (out != nullptr) std::memcpy(static_cast<void*>(out), &filled, std::min(size, sizeof filled));
        // Written so that NaN fails.
        const bool equal = found.ids_equal && found.embedding_error <= golden.embedding_tolerance &&
                           found.latents_error <= golden.latents_tolerance && found.psnr >= golden.psnr_floor;
        if (!equal) throw lrt::Error(LATENTRT_UNEQUAL, lrt::unequal_text(found, golden));
    });
}

latentrt_status latentrt_call_new(latentrt_call** out, latentrt_error** error) {
    if (out != nullptr) *out = nullptr;
    return guarded(error, [&] {
        lrt::require(out, "out");
        *out = new latentrt_call;
    });
}

void latentrt_cancel(latentrt_call* call) {
    if (call != nullptr) call->cancelled = true;
}

void latentrt_call_free(latentrt_call* call) { delete call; }

latentrt_status latentrt_plan_from_memory(const char* json, size_t length, latentrt_plan** out,
                                          latentrt_error** error) {
    if (out != nullptr) *out = nullptr;
    return guarded(error, [&] {
        lrt::require(out, "out");
        lrt::require(json, "json");
        const std::string document(json, length == LATENTRT_NUL ? std::strlen(json) : length);
        if (document.rfind("LRTPLANS", 0) == 0)
            throw lrt::input_error(
                "this is a plan pack, not one plan: pass its file as `plans` when opening the bundle");
        std::string prediction_type;
        auto plan = std::make_shared<const lrt::Plan>(lrt::plan_from_document(document, &prediction_type));
        *out = new latentrt_plan{{std::move(plan), prediction_type}};
    });
}

void latentrt_plan_free(latentrt_plan* plan) { delete plan; }

size_t latentrt_step_index(const latentrt_step* step) { return step == nullptr ? 0 : step->step.index(); }

size_t latentrt_step_total(const latentrt_step* step) { return step == nullptr ? 0 : step->step.total(); }

size_t latentrt_step_images(const latentrt_step* step) { return step == nullptr ? 0 : step->step.images(); }

latentrt_status latentrt_step_preview(const latentrt_step* step, size_t image, latentrt_preview method,
                                      const uint8_t** pixels, int32_t* height, int32_t* width, latentrt_error** error) {
    if (pixels != nullptr) *pixels = nullptr;
    return guarded(error, [&] {
        lrt::require(step, "step");
        lrt::require(pixels, "pixels");
        std::int64_t rows = 0, columns = 0;
        *pixels = step->step.preview(image, method, rows, columns);
        if (height != nullptr) *height = static_cast<int32_t>(rows);
        if (width != nullptr) *width = static_cast<int32_t>(columns);
    });
}
