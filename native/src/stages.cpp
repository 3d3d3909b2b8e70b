// The stages of a call, one by one: texts and pictures to trajectories, latents to pictures.
#include "base/error.hpp"
#include "clock.hpp"
#include "latents/initial.hpp"
#include "latents/preview.hpp"
#include "pipeline.hpp"
#include "request/time_inputs.hpp"

#include <algorithm>
#include <cstring>

namespace lrt {

namespace {

// Layers (n, K, S, D) to (n, chosen, S, D).
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
        TorchGenerator between(request.seeds[image] + static_cast<std::uint64_t>(request.noise_seed_delta),
                               request.rng);
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
        trajectory.time_inputs = time_inputs(bundle_.graph("time"), conditioning.pooled, image, request.time_ids,
                                             request.guidance_scales[image], sides[1]);
    }
    if (request.image) clock.lap("vae_encoder");
    return all;
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

Bytes Pipeline::preview(const Floats& latents, latentrt_preview method, bool tiling) {
    const Model& model = manifest().model;
    int number = 0;  // a value that the enum has not must not be read as one
    std::memcpy(&number, &method, sizeof number);
    if (number < LATENTRT_PREVIEW_AUTO || number > LATENTRT_PREVIEW_VAE)
        throw input_error("unknown preview method " + std::to_string(number));
    if (method == LATENTRT_PREVIEW_VAE || (method == LATENTRT_PREVIEW_AUTO && model.latent_rgb.empty()))
        return decode(latents, tiling).images;
    if (model.latent_rgb.empty())
        throw input_error(bundle_.folder.string() +
                          " has no latent_rgb: use LATENTRT_PREVIEW_VAE, or export the "
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

}  // namespace lrt
