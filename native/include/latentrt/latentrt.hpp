// latentrt for C++17, header-only, over the C functions of latentrt.h: owners, exceptions, strings and vectors.
//
//     latentrt::Pipeline pipeline("engines/sd15");
//     latentrt::Request request("a photo of an astronaut riding a horse");
//     request.seeds = {7};
//     const latentrt::Images images = pipeline.draw(request);
//     const latentrt::View<std::uint8_t> file = images.png(0);
//
// See docs/embedding.md for the guide, and latentrt.h for what each field means.
#ifndef LATENTRT_HPP
#define LATENTRT_HPP

#include <latentrt/latentrt.h>

#include <array>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace latentrt {

// A failure of the library.
class Error : public std::runtime_error {
  public:
    Error(latentrt_status status, const std::string& text) : std::runtime_error(text), status_(status) {}
    latentrt_status status() const noexcept { return status_; }

  private:
    latentrt_status status_;
};

namespace detail {

// Throws for a status that is a failure, and frees its error.
inline void check(latentrt_status status, latentrt_error* error) {
    if (status == LATENTRT_OK) return;
    const std::unique_ptr<latentrt_error, void (*)(latentrt_error*)> owner(error, latentrt_error_free);
    throw Error(status, latentrt_error_text(error));
}

// Calls a function whose last argument is where its error goes.
template <typename Function>
void call(Function&& function) {
    latentrt_error* error = nullptr;
    const latentrt_status status = function(&error);
    check(status, error);
}

inline latentrt_text text(const std::string& given) { return {given.data(), given.size()}; }

// Views of strings that live longer.
inline std::vector<latentrt_text> texts(const std::vector<std::string>& given) {
    std::vector<latentrt_text> views;
    for (const std::string& one : given) views.push_back(text(one));
    return views;
}

template <typename T>
using Owner = std::unique_ptr<T, void (*)(T*)>;

}  // namespace detail

// Values that belong to somebody else.
template <typename T>
struct View {
    const T* data = nullptr;
    std::size_t size = 0;

    const T* begin() const noexcept { return data; }
    const T* end() const noexcept { return data + size; }
    const T& operator[](std::size_t index) const noexcept { return data[index]; }
};

// Pictures (height, width, 3) as a step predicts them.
struct Preview {
    View<std::uint8_t> pixels;
    int height = 0, width = 0;
};

// A finished model call; valid inside of the callback.
class Step {
  public:
    explicit Step(const latentrt_step* step) noexcept : step_(step) {}

    std::size_t index() const noexcept { return latentrt_step_index(step_); }
    std::size_t total() const noexcept { return latentrt_step_total(step_); }
    std::size_t images() const noexcept { return latentrt_step_images(step_); }
    Preview preview(std::size_t image, latentrt_preview method = LATENTRT_PREVIEW_AUTO) const {
        Preview found;
        std::int32_t height = 0, width = 0;
        detail::call([&](latentrt_error** error) {
            return latentrt_step_preview(step_, image, method, &found.pixels.data, &height, &width, error);
        });
        found.height = height;
        found.width = width;
        found.pixels.size = static_cast<std::size_t>(height) * static_cast<std::size_t>(width) * 3;
        return found;
    }

  private:
    const latentrt_step* step_;
};

// Cancels a draw from another thread.
class Call {
  public:
    Call() : call_(nullptr, latentrt_call_free) {
        latentrt_call* made = nullptr;
        detail::call([&](latentrt_error** error) { return latentrt_call_new(&made, error); });
        call_.reset(made);
    }
    void cancel() noexcept { latentrt_cancel(call_.get()); }
    latentrt_call* get() const noexcept { return call_.get(); }

  private:
    detail::Owner<latentrt_call> call_;
};

// A scheduler with its steps, from a document of the format latentrt.plan/1.
class Plan {
  public:
    explicit Plan(std::string_view json) : plan_(nullptr, latentrt_plan_free) {
        latentrt_plan* made = nullptr;
        detail::call(
            [&](latentrt_error** error) { return latentrt_plan_from_memory(json.data(), json.size(), &made, error); });
        plan_.reset(made);
    }
    const latentrt_plan* get() const noexcept { return plan_.get(); }

  private:
    detail::Owner<latentrt_plan> plan_;
};

// Pixels of a picture, (height, width, channels). The bytes must live until the draw returns.
struct Picture {
    const std::uint8_t* data = nullptr;
    int height = 0, width = 0, channels = 3;
    std::size_t stride = 0;
};

// A call; names and defaults are those of latentrt_request. What is not set has its default.
struct Request {
    Request() = default;
    explicit Request(std::string prompt) : prompts{std::move(prompt)} {}
    explicit Request(std::vector<std::string> many) : prompts(std::move(many)) {}

    std::vector<std::string> prompts, negative_prompts, prompts_2, negative_prompts_2;
    latentrt_prompt_syntax prompt_syntax = LATENTRT_SYNTAX_PLAIN;
    latentrt_long_prompt long_prompt = LATENTRT_LONG_TRUNCATE;
    int clip_skip = 0, num_images_per_prompt = 1;
    std::optional<int> height, width, num_inference_steps;
    std::optional<std::string> scheduler;
    const Plan* plan = nullptr;
    std::vector<double> guidance_scales;
    double guidance_rescale = 0, guidance_start = 0, guidance_end = 1;
    std::vector<std::uint64_t> seeds;
    latentrt_rng rng = LATENTRT_RNG_CPU;
    std::int64_t noise_seed_delta = 0;
    std::vector<float> latents;
    std::vector<Picture> images, masks;
    std::vector<float> image_latents;
    std::optional<double> strength;
    std::optional<latentrt_pair> original_size, crops_coords_top_left, target_size, negative_original_size,
        negative_crops_coords_top_left, negative_target_size;
    bool vae_tiling = false;
    latentrt_output output = LATENTRT_OUTPUT_IMAGES;
    const Call* call = nullptr;
};

namespace detail {

// A request as the C functions take it; it points into the one that it was made of.
class CRequest {
  public:
    explicit CRequest(const Request& given)
        : prompts_(texts(given.prompts)),
          negative_(texts(given.negative_prompts)),
          prompts_2_(texts(given.prompts_2)),
          negative_2_(texts(given.negative_prompts_2)),
          images_(pixels(given.images)),
          masks_(pixels(given.masks)) {
        latentrt_request_init(&request_, sizeof request_);
        put(request_.prompts, request_.prompts_count, prompts_);
        put(request_.negative_prompts, request_.negative_prompts_count, negative_);
        put(request_.prompts_2, request_.prompts_2_count, prompts_2_);
        put(request_.negative_prompts_2, request_.negative_prompts_2_count, negative_2_);
        put(request_.guidance_scales, request_.guidance_scales_count, given.guidance_scales);
        put(request_.seeds, request_.seeds_count, given.seeds);
        put(request_.latents, request_.latents_count, given.latents);
        put(request_.images, request_.images_count, images_);
        put(request_.masks, request_.masks_count, masks_);
        put(request_.image_latents, request_.image_latents_count, given.image_latents);
        put_values(given);
    }
    const latentrt_request* get() const noexcept { return &request_; }

  private:
    static std::vector<latentrt_pixels> pixels(const std::vector<Picture>& given) {
        std::vector<latentrt_pixels> all;
        for (const Picture& one : given) all.push_back({one.data, one.height, one.width, one.channels, one.stride});
        return all;
    }
    template <typename T>
    static void put(const T*& to, std::size_t& count, const std::vector<T>& from) {
        if (from.empty()) return;
        to = from.data();
        count = from.size();
    }
    template <typename To, typename From>
    static void put(To& to, const std::optional<From>& from) {
        if (from) to = *from;
    }
    void put_values(const Request& given) {
        request_.prompt_syntax = given.prompt_syntax;
        request_.long_prompt = given.long_prompt;
        request_.clip_skip = given.clip_skip;
        request_.num_images_per_prompt = given.num_images_per_prompt;
        put(request_.height, given.height);
        put(request_.width, given.width);
        put(request_.num_inference_steps, given.num_inference_steps);
        if (given.scheduler) request_.scheduler = text(*given.scheduler);
        if (given.plan != nullptr) request_.plan = given.plan->get();
        request_.guidance_rescale = given.guidance_rescale;
        request_.guidance_start = given.guidance_start;
        request_.guidance_end = given.guidance_end;
        request_.rng = given.rng;
        request_.noise_seed_delta = given.noise_seed_delta;
        put(request_.strength, given.strength);
        put(request_.original_size, given.original_size);
        put(request_.crops_coords_top_left, given.crops_coords_top_left);
        put(request_.target_size, given.target_size);
        put(request_.negative_original_size, given.negative_original_size);
        put(request_.negative_crops_coords_top_left, given.negative_crops_coords_top_left);
        put(request_.negative_target_size, given.negative_target_size);
        request_.vae_tiling = given.vae_tiling ? 1 : 0;
        request_.output = given.output;
        if (given.call != nullptr) request_.call = given.call->get();
    }

    std::vector<latentrt_text> prompts_, negative_, prompts_2_, negative_2_;
    std::vector<latentrt_pixels> images_, masks_;
    latentrt_request request_{};
};

}  // namespace detail

// Finished pictures.
class Images {
  public:
    explicit Images(latentrt_images* images) noexcept : images_(images, latentrt_images_free) {}

    std::size_t count() const noexcept { return latentrt_images_count(images_.get()); }
    int height() const noexcept { return latentrt_images_height(images_.get()); }
    int width() const noexcept { return latentrt_images_width(images_.get()); }
    std::uint64_t seed(std::size_t index) const noexcept { return latentrt_images_seed(images_.get(), index); }
    // (height, width, 3); empty where only latents were drawn.
    View<std::uint8_t> pixels(std::size_t index) const noexcept {
        const std::uint8_t* data = latentrt_images_pixels(images_.get(), index);
        const std::size_t size = static_cast<std::size_t>(height()) * static_cast<std::size_t>(width()) * 3;
        return {data, data == nullptr ? 0 : size};
    }
    // (C, h, w).
    View<float> latents(std::size_t index) const noexcept {
        std::array<std::size_t, 3> shape{};
        const float* data = latentrt_images_latents(images_.get(), index, shape.data());
        return {data, shape[0] * shape[1] * shape[2]};
    }
    // C, h and w.
    std::array<std::size_t, 3> latent_shape() const noexcept {
        std::array<std::size_t, 3> shape{};
        latentrt_images_latents(images_.get(), 0, shape.data());
        return shape;
    }
    double milliseconds(const char* stage) const noexcept { return latentrt_images_milliseconds(images_.get(), stage); }
    // "" for a key that there is not.
    std::string text(std::size_t index, const char* key) const {
        const char* found = latentrt_images_text(images_.get(), index, key);
        return found == nullptr ? "" : found;
    }
    View<std::uint8_t> png(std::size_t index) const {
        View<std::uint8_t> file;
        detail::call([&](latentrt_error** error) {
            return latentrt_images_png(images_.get(), index, &file.data, &file.size, error);
        });
        return file;
    }

  private:
    detail::Owner<latentrt_images> images_;
};

enum class LogLevel { info = LATENTRT_LOG_INFO, warning = LATENTRT_LOG_WARNING };

// Where and how graphs run; see latentrt_open_options.
struct OpenOptions {
    std::string onnxruntime, provider = "cpu";
    int device = 0, threads = 0;
    std::vector<std::pair<std::string, std::string>> provider_options;
    std::vector<std::string> plans;
    // Called by the threads that open and draw, several at once. It must not throw.
    std::function<void(LogLevel, std::string_view)> log;
};

// An open bundle on a device. Thread-safe but for its destructor, which waits for draws.
class Pipeline {
  public:
    explicit Pipeline(const std::string& bundle, OpenOptions options = {})
        : log_(std::make_unique<decltype(options.log)>(std::move(options.log))), pipeline_(nullptr, latentrt_close) {
        latentrt_open_options given;
        latentrt_open_options_init(&given, sizeof given);
        std::vector<latentrt_text> keys, values;
        for (const auto& [key, value] : options.provider_options) {
            keys.push_back(detail::text(key));
            values.push_back(detail::text(value));
        }
        const std::vector<latentrt_text> plans = detail::texts(options.plans);
        if (!options.onnxruntime.empty()) given.onnxruntime = detail::text(options.onnxruntime);
        given.provider = detail::text(options.provider);
        given.device = options.device;
        given.threads = options.threads;
        given.provider_keys = keys.data();
        given.provider_values = values.data();
        given.provider_options_count = keys.size();
        given.plans = plans.data();
        given.plans_count = plans.size();
        if (*log_) {
            given.log = [](latentrt_log_level level, const char* text, std::size_t length, void* user) {
                (*static_cast<decltype(options.log)*>(user))(static_cast<LogLevel>(level), {text, length});
            };
            given.log_user = log_.get();
        }
        latentrt_pipeline* opened = nullptr;
        detail::call([&](latentrt_error** error) { return latentrt_open(bundle.c_str(), &given, &opened, error); });
        pipeline_.reset(opened);
    }

    Pipeline(Pipeline&&) noexcept = default;
    // Closes the old pipeline first, and waits for its draws, which may still log.
    Pipeline& operator=(Pipeline&& other) noexcept {
        pipeline_ = std::move(other.pipeline_);
        log_ = std::move(other.log_);
        return *this;
    }

    std::string backend() const { return latentrt_backend(pipeline_.get()); }
    int default_height() const noexcept { return latentrt_default_height(pipeline_.get()); }
    int default_width() const noexcept { return latentrt_default_width(pipeline_.get()); }
    std::vector<std::string> schedulers() const {
        std::vector<std::string> names;
        while (const char* name = latentrt_scheduler_name(pipeline_.get(), names.size())) names.emplace_back(name);
        return names;
    }

    // `on_step` is called after each model call and returns whether to go on. What it throws ends the draw, and is
    // thrown again from here.
    Images draw(const Request& request, const std::function<bool(const Step&)>& on_step = {}) const {
        const detail::CRequest given(request);
        Watched watched{on_step, nullptr};
        latentrt_images* images = nullptr;
        latentrt_error* error = nullptr;
        const latentrt_status status =
            latentrt_draw(pipeline_.get(), given.get(), on_step ? &Watched::step : nullptr, &watched, &images, &error);
        if (watched.thrown) {
            latentrt_error_free(error);
            latentrt_images_free(images);
            std::rethrow_exception(watched.thrown);
        }
        detail::check(status, error);
        return Images(images);
    }

    // Throws LATENTRT_UNEQUAL where the outputs are not the golden ones.
    latentrt_verification verify() const {
        latentrt_verification found;
        latentrt_verification_init(&found, sizeof found);
        detail::call([&](latentrt_error** error) { return latentrt_verify(pipeline_.get(), &found, error); });
        return found;
    }

    latentrt_pipeline* get() const noexcept { return pipeline_.get(); }

  private:
    struct Watched {
        const std::function<bool(const Step&)>& on_step;
        std::exception_ptr thrown;

        static int step(const latentrt_step* step, void* user) {
            auto& self = *static_cast<Watched*>(user);
            try {
                return self.on_step(Step(step)) ? 1 : 0;
            } catch (...) {
                self.thrown = std::current_exception();
                return 0;
            }
        }
    };

    std::unique_ptr<std::function<void(LogLevel, std::string_view)>> log_;
    detail::Owner<latentrt_pipeline> pipeline_;
};

}  // namespace latentrt

#endif
