#include "pipeline.hpp"

#include "base/error.hpp"
#include "clock.hpp"
#include "latents/initial.hpp"
#include "latents/preview.hpp"
#include "latents/vae_tiling.hpp"
#include "request/metadata.hpp"
#include "request/time_inputs.hpp"

#include <cmath>
#include <cstring>
#include <stdexcept>

namespace lrt {

namespace {

constexpr std::size_t MOST_OF_TOKENIZER = std::size_t{1} << 26;  // bytes of tokenizer.json; CLIP's has 1.7 MB

// Values of the floats that `choose` leaves: layers (n, K, S, D) to (n, chosen, S, D).
Floats chosen_layers(const Value& all, const std::vector<std::int64_t>& layers) {
    const Shape shape = all.shape();
    Shape chosen = shape;
    chosen[1] = static_cast<std::int64_t>(layers.size());
    Floats result(chosen);
    const auto size = static_cast<std::size_t>(shape[2] * shape[3]);
    const auto* from = static_cast<const float*>(all.data());
    for (std::size_t row = 0; row < static_cast<std::size_t>(shape[0]); ++row)
        for (std::size_t i = 0; i < layers.size(); ++i)
            std::copy_n(from + (row * static_cast<std::size_t>(shape[1]) + static_cast<std::size_t>(layers[i])) * size,
                        size, result.row(row) + i * size);
    return result;
}

// What some models add to the embedding of the timestep, for one image, each (G, width).
// `pooled` is that of all images; it may be nothing.
std::vector<std::pair<std::string, Floats>> time_inputs(const Graph& graph, const std::optional<Floats>& pooled,
                                                        std::size_t image, const Floats& time_ids,
                                                        double guidance_scale, std::int64_t groups) {
    std::vector<std::pair<std::string, Floats>> inputs;
    for (const TensorSpec& spec : graph.inputs) {
        if (spec.name == "timesteps") continue;
        const std::int64_t width = spec.shape[1].factor;
        Floats array(Shape{groups, width});
        if (spec.name == "pooled") {
            if (!pooled || pooled->stride() != array.values.size())
                throw bundle_error("time takes a pooled embedding of " + std::to_string(width) +
                                   " numbers, and the text encoder returns another: export the checkpoint again");
            std::copy_n(pooled->row(image), array.values.size(), array.values.begin());
        } else if (spec.name == "time_ids") {  // of [negative, positive]
            std::copy_n(time_ids.row(static_cast<std::size_t>(2 - groups)), array.values.size(), array.values.begin());
        } else {
            const std::vector<float> embedding = guidance_embedding(guidance_scale, width);
            for (std::size_t group = 0; group < static_cast<std::size_t>(groups); ++group)
                std::copy(embedding.begin(), embedding.end(), array.row(group));
        }
        inputs.emplace_back(spec.name, std::move(array));
    }
    return inputs;
}

}  // namespace

Pipeline::Pipeline(const std::string& folder, const std::string& library, Device device,
                   const std::vector<std::string>& packs, Log log)
    : bundle_(open_bundle(folder)), log_(log), engines_(Library::load(library), bundle_, std::move(device)),
      features_(engines_), backend_(engines_.name()) {
    const Model& model = manifest().model;
    if (model.registers != REGISTERS)
        throw bundle_error(folder + " was exported for plans of " + std::to_string(model.registers) +
                           " registers, and this library's have " + std::to_string(REGISTERS) +
                           ": export the checkpoint again");
    for (const TextEncoder& facts : model.text_encoders) {
        const Path file = bundle_.file(facts.tokenizer);
        try {
            tokenizers_.emplace_back(bytes_of(file, MOST_OF_TOKENIZER), facts);
        } catch (const std::runtime_error& error) {
            throw bundle_error(file.string() + " cannot be read as a tokenizer: " + error.what());
        }
    }
    for (const std::string& pack : packs) packs_.add(pack, model.prediction_type);
    for (const std::string& pack : manifest().plans) packs_.add(bundle_.file(pack), model.prediction_type);
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
        for (std::size_t image = 0; image < request.images(); ++image) {
            const float* values = drawn.latents.row(image);
            bad.push_back(!std::all_of(values, values + drawn.latents.stride(), [](float x) { return std::isfinite(x); }));
        }
    } else {
        Decoded decoded = decode(drawn.latents, request.tiling);
        for (const std::int32_t count : decoded.nonfinite) bad.push_back(count != 0);
        drawn.pixels = std::move(decoded.images);
        clock.lap("vae_decoder");
    }
    require_finite(bad);
    const Source source{manifest().checkpoint_name, manifest().checkpoint_sha256, LATENTRT_VERSION};
    for (std::size_t image = 0; image < request.images(); ++image)
        drawn.texts.push_back(png_texts(recorded(request, given, image), source));
    drawn.milliseconds = clock.done();
    return drawn;
}

std::vector<Trajectory> Pipeline::trajectories(const Request& request, Clock& clock) {
    Conditioning conditioning = encoded(request, clock);
    const Model& model = manifest().model;
    const std::int64_t factor = model.vae_scale_factor;
    std::vector<KnownImage> known;
    if (request.image) {
        const bool inpaints = bundle_.graph("denoise").takes("extra");
        const Encode run = [&](const Floats& pixels) { return encode(pixels, request.tiling); };
        known = known_images(*request.image, *request.plan, model.scaling_factor, factor, inpaints, run);
    }
    const Shape shape{model.latent_channels, request.height / factor, request.width / factor};
    std::vector<Trajectory> all(request.images());
    for (std::size_t image = 0; image < all.size(); ++image) {
        TorchGenerator generator(request.seeds[image], request.rng);
        // Seeds count modulo 2**64, as Python's are read.
        TorchGenerator between(request.seeds[image] + static_cast<std::uint64_t>(request.noise_seed_delta), request.rng);
        InitialLatents start = initial_latents(
            *request.plan, generator, shape, request.noise.values.empty() ? nullptr : request.noise.row(image),
            known.empty() ? nullptr : &known[image], request.noise_seed_delta == 0 ? nullptr : &between);
        Trajectory& trajectory = all[image];
        trajectory.plan = request.plan.get();
        const float* context = conditioning.context.row(image);
        const Shape& sides = conditioning.context.shape;
        trajectory.context = {{sides[1], sides[2], sides[3]}, {context, context + conditioning.context.stride()}};
        trajectory.guidance = request.guidance(image);
        trajectory.noise = std::move(start.noise);
        trajectory.guidance_rescale = static_cast<float>(request.guidance_rescale);
        trajectory.clean = std::move(start.clean);
        trajectory.mask = std::move(start.mask);
        trajectory.extra = std::move(start.extra);
        trajectory.time_inputs =
            time_inputs(bundle_.graph("time"), conditioning.pooled, image, request.time_ids,
                        request.guidance_scales[image], sides[1]);
    }
    if (request.image) clock.lap("vae_encoder");
    return all;
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

Conditioning Pipeline::encoded(const Request& request, Clock& clock) {
    const std::vector<Side> sides = request.sides();
    const Tokens tokens(sides, tokenizers_, request.encoding, log_);
    clock.lap("tokenize");
    const RunEncoder run = [this](std::size_t encoder, const Ids& ids, const std::vector<std::int64_t>& layers) {
        return run_encoder(encoder, ids, layers);
    };
    const Encoded outputs(tokens, run, request.encoding.clip_skip);
    clock.lap("text_encoder");
    return outputs.conditioning(sides, manifest().model.text_encoders, request.encoding.clip_skip);
}

EncoderOutputs Pipeline::run_encoder(std::size_t encoder, const Ids& ids, const std::vector<std::int64_t>& layers) {
    const Session& session = engines_.get(manifest().model.text_encoders[encoder].graph);
    const Value value = Value::over(session.library(), ids);
    const std::vector<Value> outputs = session.run({{"input_ids", &value}});
    EncoderOutputs result;
    for (std::size_t i = 0; i < outputs.size(); ++i) {
        const std::string& name = session.spec().outputs[i].name;
        if (name == "hidden_states") result.hidden_states = chosen_layers(outputs[i], layers);
        if (name == "pooled") result.pooled = outputs[i].copied<float>();
    }
    if (result.pooled && result.pooled->rows() != ids.rows())
        throw bundle_error(session.spec().file + " returned another number of pooled embeddings than of texts");
    return result;
}

Decoded Pipeline::decode_whole(const Floats& latents) {
    const Session& session = engines_.get("vae_decoder");
    const Value value = Value::over(session.library(), latents);
    const std::vector<Value> outputs = session.run({{"latents", &value}});
    Decoded decoded;
    for (std::size_t i = 0; i < outputs.size(); ++i) {
        const std::string& name = session.spec().outputs[i].name;
        if (name == "images") decoded.images = outputs[i].copied<std::uint8_t>();
        if (name == "nonfinite") decoded.nonfinite = outputs[i].copied<std::int32_t>().values;
    }
    return decoded;
}

std::pair<Floats, Floats> Pipeline::encode_whole(const Floats& pixels) {
    const Session& session = engines_.get("vae_encoder");
    const Value value = Value::over(session.library(), pixels);
    const std::vector<Value> outputs = session.run({{"images", &value}});
    std::pair<Floats, Floats> moments;
    for (std::size_t i = 0; i < outputs.size(); ++i) {
        const std::string& name = session.spec().outputs[i].name;
        if (name == "mean") moments.first = outputs[i].copied<float>();
        if (name == "logvar") moments.second = outputs[i].copied<float>();
    }
    return moments;
}

// Pictures that are larger than those that the VAE was trained on are split into tiles, where that is asked for.
Decoded Pipeline::decode(const Floats& latents, bool tiling) {
    const Model& model = manifest().model;
    if (!tiling || std::max(latents.shape[2], latents.shape[3]) <= model.vae_tile) return decode_whole(latents);
    return tiled_decode([this](const Floats& tile) { return decode_whole(tile); }, latents, model.vae_tile,
                        model.vae_scale_factor);
}

std::pair<Floats, Floats> Pipeline::encode(const Floats& pixels, bool tiling) {
    const Model& model = manifest().model;
    const std::int64_t most = model.vae_tile * model.vae_scale_factor;
    if (!tiling || std::max(pixels.shape[1], pixels.shape[2]) <= most) return encode_whole(pixels);
    return tiled_encode([this](const Floats& tile) { return encode_whole(tile); }, pixels, model.vae_tile,
                        model.vae_scale_factor);
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

Bytes Pipeline::preview(const Floats& latents, latentrt_preview method, bool tiling) {
    const Model& model = manifest().model;
    int number = 0;  // a value that the enum has not must not be read as one
    std::memcpy(&number, &method, sizeof number);
    if (number < LATENTRT_PREVIEW_AUTO || number > LATENTRT_PREVIEW_VAE)
        throw input_error("unknown preview method " + std::to_string(number));
    if (method == LATENTRT_PREVIEW_VAE || (method == LATENTRT_PREVIEW_AUTO && model.latent_rgb.empty()))
        return decode(latents, tiling).images;
    if (model.latent_rgb.empty())
        throw input_error(bundle_.folder.string() + " has no latent_rgb: use LATENTRT_PREVIEW_VAE, or export the "
                                                    "checkpoint again");
    const Shape shape{latents.shape[1], latents.shape[2], latents.shape[3]};
    Bytes all;
    for (std::size_t image = 0; image < static_cast<std::size_t>(latents.rows()); ++image) {
        const Bytes one = rgb_from_latents(latents.row(image), shape, model.latent_rgb, model.vae_scale_factor);
        all.values.insert(all.values.end(), one.values.begin(), one.values.end());
        all.shape = {latents.rows(), one.shape[0], one.shape[1], one.shape[2]};
    }
    return all;
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
