#include "pipeline.hpp"

#include "base/error.hpp"
#include "base/numbers.hpp"
#include "clock.hpp"

#include <stdexcept>

namespace lrt {

namespace {

constexpr std::size_t MOST_OF_TOKENIZER = std::size_t{1} << 26;  // bytes of tokenizer.json; CLIP's has 1.7 MB

}  // namespace

Pipeline::Pipeline(const std::string& folder, const std::string& library, Device device,
                   const std::vector<std::string>& packs, Log log)
    : bundle_(open_bundle(folder)),
      log_(log),
      engines_(Library::load(library), bundle_, std::move(device)),
      features_(engines_),
      backend_(engines_.name()) {
    const Model& model = manifest().model;
    if (model.registers != REGISTERS)
        throw bundle_error(folder + " was exported for plans of " + std::to_string(model.registers) +
                           " registers, and this library's have " + std::to_string(REGISTERS) +
                           ": export the checkpoint again");
    for (const TextEncoder& facts : model.text_encoders) {
        const Path file = bundle_.file(facts.tokenizer);
        try {
            tokenizers_.emplace_back(bytes_of(file, MOST_OF_TOKENIZER), facts);
        } catch (const Error& error) {  // says by itself that it is no tokenizer
            throw bundle_error(folder + ": " + error.what());
        } catch (const std::runtime_error& error) {
            throw bundle_error(file.string() + " cannot be read: " + error.what());
        }
    }
    for (const std::string& pack : packs) packs_.add(pack, model.prediction_type, bundle_.scheduler_config);
    for (const std::string& pack : manifest().plans)
        packs_.add(bundle_.file(pack), model.prediction_type, bundle_.scheduler_config);
    log_.info(folder + " on " + backend_);
}

Drawn Pipeline::draw(const latentrt_request& given, const GivenPlan* plan, const std::atomic<bool>* cancelled,
                     const OnStep& on_step) {
    const Request request = request_from(given, plan, manifest(), packs_);
    Clock clock;
    const std::vector<Trajectory> all = trajectories(request, clock);
    Denoising denoising(engines_, features_, manifest(), all);
    const auto require_wanted = [&] {
        if (cancelled != nullptr && *cancelled) throw Error(LATENTRT_CANCELLED, "the call was cancelled");
    };
    while (denoising.done() < denoising.calls()) {
        require_wanted();
        denoising.call();
        Step step(*this, denoising, request.tiling);
        if (!on_step(step)) throw Error(LATENTRT_CANCELLED, "on_step returned 0");
    }
    require_wanted();
    Drawn drawn{request.height, request.width, request.seeds, {}, denoising.fetch(0), {}, {}};
    clock.lap("denoise");
    std::vector<bool> bad;
    if (request.latents_only) {
        for (std::size_t image = 0; image < request.images(); ++image)
            bad.push_back(!all_finite(drawn.latents.row(image), drawn.latents.stride()));
    } else {
        Decoded decoded = decode(drawn.latents, request.tiling);
        for (const std::int32_t count : decoded.nonfinite) bad.push_back(count != 0);
        drawn.pixels = std::move(decoded.images);
        clock.lap("vae_decoder");
        require_wanted();
    }
    require_finite(bad);
    const Source source{manifest().checkpoint_name, manifest().checkpoint_sha256, LATENTRT_VERSION};
    for (std::size_t image = 0; image < request.images(); ++image)
        drawn.texts.push_back(png_texts(recorded(request, given, image), source));
    drawn.milliseconds = clock.done();
    return drawn;
}

// What a PNG file of an image says: all options, as a call that draws this image alone would give them.
Recorded Pipeline::recorded(const Request& request, const latentrt_request& given, std::size_t image) const {
    const auto second = [&](const Side& side) -> std::optional<std::string> {
        const std::string &first = side.texts.front()[image], &last = side.texts.back()[image];
        if (side.zeros || last == first) return std::nullopt;
        return last;
    };
    Recorded values;
    values.prompt = request.positive.texts.front()[image];
    if (!request.negative.zeros) values.negative_prompt = request.negative.texts.front()[image];
    values.prompt_2 = second(request.positive);
    values.negative_prompt_2 = second(request.negative);
    values.scheduler = request.scheduler;
    values.plan = request.plan_is_given ? request.plan.get() : nullptr;
    values.plus_plus = request.plan->is_plus_plus();
    values.num_inference_steps = request.num_inference_steps.value_or(0);
    if (!request.plan_is_given) values.strength = request.strength;
    values.guidance_scale = request.guidance_scales[image];
    values.guidance_rescale = request.guidance_rescale;
    values.guidance_start = request.guidance_start;
    values.guidance_end = request.guidance_end;
    values.seed = request.seeds[image];
    values.rng = request.rng;
    values.noise_seed_delta = request.noise_seed_delta;
    values.prompt_syntax = given.prompt_syntax;
    values.long_prompt = given.long_prompt;
    values.clip_skip = given.clip_skip;
    values.height = request.height;
    values.width = request.width;
    values.original_size = given.original_size;
    values.crops_coords_top_left = given.crops_coords_top_left;
    values.target_size = given.target_size;
    values.negative_original_size = given.negative_original_size;
    values.negative_crops_coords_top_left = given.negative_crops_coords_top_left;
    values.negative_target_size = given.negative_target_size;
    values.vae_tiling = request.tiling;
    if (!request.noise.values.empty()) values.latents = hash_of(request.noise.row(image), request.noise.stride());
    if (!request.image) return values;
    const std::size_t row = request.image->rows[image];
    if (request.image->has_latents()) {
        values.image = hash_of(request.image->latents.row(row), request.image->latents.stride());
    } else {
        values.image = hash_of(given.images[row]);
    }
    if (request.image->has_mask()) values.mask = hash_of(given.masks[given.masks_count == 1 ? 0 : row]);
    return values;
}

void Pipeline::require_finite(const std::vector<bool>& bad) const {
    std::string which;
    for (std::size_t image = 0; image < bad.size(); ++image)
        if (bad[image]) which += (which.empty() ? "" : ", ") + std::to_string(image);
    if (which.empty()) return;
    throw Error(LATENTRT_NONFINITE, "image " + which + " of " + std::to_string(bad.size()) +
                                        " holds NaN or infinity. The model overflowed: this bundle is " +
                                        manifest().precision + ", its VAE " + manifest().vae_precision +
                                        "; export it with --vae-precision fp32 or --precision fp32, or lower the "
                                        "guidance scale");
}

const std::uint8_t* Step::preview(std::size_t image, latentrt_preview method, std::int64_t& height,
                                  std::int64_t& width) {
    if (image >= images())
        throw input_error("image " + std::to_string(image) + ": this call draws " + std::to_string(images()));
    Bytes& pictures = previews_[method];
    if (pictures.values.empty())
        pictures = pipeline_.preview(denoising_.fetch(static_cast<std::size_t>(REGISTERS - 1)), method, tiling_);
    height = pictures.shape[1];
    width = pictures.shape[2];
    return pictures.row(image);
}

void Pipeline::enter() {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (closing_) throw input_error("this pipeline is being closed: begin no call after latentrt_close");
    ++drawing_;
}

void Pipeline::leave() {
    const std::lock_guard<std::mutex> lock(mutex_);
    --drawing_;
    left_.notify_all();
}

void Pipeline::wait_until_left() {
    std::unique_lock<std::mutex> lock(mutex_);
    closing_ = true;
    left_.wait(lock, [this] { return drawing_ == 0; });
}

}  // namespace lrt
