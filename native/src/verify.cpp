// Compares a pipeline with the goldens of its bundle, stage by stage. Each stage starts from its golden input, so that
// a fault shows in its own stage. See runtime/goldens/pipeline.py.
#include "base/error.hpp"
#include "bundle/safetensors.hpp"
#include "pipeline.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

namespace lrt {

namespace {

constexpr std::size_t MOST = std::size_t{1} << 30;  // bytes of the file

std::string suffix_of(const TextEncoder& facts) {
    const std::string prefix = "text_encoder";
    return facts.graph.rfind(prefix, 0) == 0 ? facts.graph.substr(prefix.size()) : facts.graph;
}

// The arrays of a file, with errors that name it.
class Goldens {
  public:
    explicit Goldens(const Path& file) : file_(file), arrays_(read(file)) {}

    Floats floats(const std::string& name, const Shape& shape) const { return checked<float>(name, "F32", shape); }
    Ids ids(const std::string& name, const Shape& shape) const { return checked<std::int64_t>(name, "I64", shape); }
    Bytes bytes(const std::string& name, const Shape& shape) const { return checked<std::uint8_t>(name, "U8", shape); }

    Plan plan() const {
        Plan plan;
        try {
            plan.timesteps = arrays_.array<float>("plan.timesteps", "F32").values;
            plan.coefficients = arrays_.array<float>("plan.coefficients", "F32").values;
            plan.initial = arrays_.array<float>("plan.initial", "F32").values;
            plan.noise_levels = arrays_.array<float>("plan.noise_levels", "F32").values;
            plan.blend = arrays_.array<float>("plan.blend", "F32").values;
            plan.draws = arrays_.array<std::uint8_t>("plan.draws", "BOOL").values;
            if (arrays_.has("plan.guidance")) plan.guidance = arrays_.array<float>("plan.guidance", "F32").values;
            plan.check();
        } catch (const std::runtime_error& error) {
            throw damaged(error.what());
        }
        return plan;
    }

  private:
    Error damaged(const std::string& what) const {
        return bundle_error(file_.string() + " is damaged: " + what + ". Export the checkpoint again");
    }
    Safetensors read(const Path& file) const {
        try {
            return Safetensors(bytes_of(file, MOST));
        } catch (const std::runtime_error& error) {
            throw damaged(error.what());
        }
    }
    // A side of -1 is any.
    template <typename T>
    Array<T> checked(const std::string& name, const char* dtype, const Shape& shape) const {
        try {
            Array<T> array = arrays_.array<T>(name, dtype);
            bool fits = array.shape.size() == shape.size();
            for (std::size_t axis = 0; fits && axis < shape.size(); ++axis)
                fits = shape[axis] == -1 || shape[axis] == array.shape[axis];
            if (!fits) throw std::runtime_error(name + " has another shape than the manifest says");
            return array;
        } catch (const std::runtime_error& error) {
            throw damaged(error.what());
        }
    }

    Path file_;
    Safetensors arrays_;
};

// Euclidean norm of a difference over that of what was expected.
class RelativeError {
  public:
    void add(const float* got, const float* expected, std::size_t count) {
        for (std::size_t i = 0; i < count; ++i) {
            const double want = static_cast<double>(expected[i]);
            difference_ += std::pow(static_cast<double>(got[i]) - want, 2);
            norm_ += want * want;
        }
    }
    double value() const { return std::sqrt(difference_ / norm_); }

  private:
    double difference_ = 0, norm_ = 0;
};

double psnr(const Bytes& got, const Bytes& expected) {
    double sum = 0;
    for (std::size_t i = 0; i < got.values.size(); ++i)
        sum += std::pow(static_cast<double>(got.values[i]) - static_cast<double>(expected.values[i]), 2);
    if (sum == 0) return std::numeric_limits<double>::infinity();
    return 10 * std::log10(255.0 * 255.0 * static_cast<double>(got.values.size()) / sum);
}

// Rows [negative, positive] or [positive] of an array (2, width).
Floats last_rows(const Floats& both, std::size_t groups) {
    Shape shape = both.shape;
    shape[0] = static_cast<std::int64_t>(groups);
    const float* from = both.row(2 - groups);
    return {shape, {from, from + groups * both.stride()}};
}

Ids ids_of(const Tokenizer& tokenizer, const Golden& golden, const Shape& shape) {
    Ids ids(shape);
    for (std::size_t row = 0; row < 2; ++row) {
        const std::string& text = row == 0 ? golden.negative_prompt : golden.prompt;
        const Chunks chunks = tokenizer.chunks(parse(text, LATENTRT_SYNTAX_PLAIN, {}), false);
        std::copy_n(chunks.ids.row(0), ids.stride(), ids.row(row));
    }
    return ids;
}

// Of the first channels, which the goldens hold.
double embedding_error(const Floats& states, const Floats& known) {
    const auto width = static_cast<std::size_t>(states.shape.back()), kept = static_cast<std::size_t>(known.shape[2]);
    if (kept < 1 || kept > width)
        throw bundle_error("the golden embedding has " + std::to_string(kept) +
                           " channels, and that of the text encoder " + std::to_string(width));
    RelativeError error;
    for (std::size_t token = 0; token < known.values.size() / kept; ++token)
        error.add(&states.values[token * width], &known.values[token * kept], kept);
    return error.value();
}

// Checks tokenizers and text encoders; returns hidden states (G, S, D) of the last groups, those of all encoders
// joined.
Floats verified_texts(Verification& found, const Goldens& arrays, const Manifest& manifest,
                      const std::vector<Tokenizer>& tokenizers, const RunEncoder& run, std::size_t groups) {
    const std::vector<TextEncoder>& encoders = manifest.model.text_encoders;
    std::int64_t width = 0;
    for (const TextEncoder& facts : encoders) width += facts.hidden_size;
    const std::int64_t length = encoders.front().max_length;
    Floats context(Shape{static_cast<std::int64_t>(groups), length, width});
    std::size_t column = 0;
    for (std::size_t i = 0; i < encoders.size(); ++i) {
        const TextEncoder& facts = encoders[i];
        const std::string suffix = suffix_of(facts);
        const Ids expected = arrays.ids("input_ids" + suffix, {2, facts.max_length});
        const Ids ids = ids_of(tokenizers[i], *manifest.golden, expected.shape);
        found.ids_equal = found.ids_equal && ids.values == expected.values;
        const EncoderOutputs outputs = run(i, expected, {0});  // (2, 1, S, D)
        const Floats known = arrays.floats("embedding" + suffix, {2, facts.max_length, -1});
        found.embedding_error = std::max(found.embedding_error, embedding_error(outputs.hidden_states, known));
        if (facts.pooled) {
            const Floats pooled = arrays.floats("input.pooled", outputs.pooled->shape);
            RelativeError error;
            error.add(outputs.pooled->values.data(), pooled.values.data(), pooled.values.size());
            found.embedding_error = std::max(found.embedding_error, error.value());
        }
        const auto own = static_cast<std::size_t>(facts.hidden_size);
        for (std::size_t row = 0; row < groups * static_cast<std::size_t>(length); ++row)
            std::copy_n(outputs.hidden_states.row(2 - groups) + row * own, own,
                        &context.values[row * static_cast<std::size_t>(width) + column]);
        column += own;
    }
    return context;
}

}  // namespace

Verification Pipeline::verify() {
    if (!manifest().golden)
        throw bundle_error(bundle_.folder.string() + " has no golden outputs: export the checkpoint again");
    const Golden& golden = *manifest().golden;
    const Model& model = manifest().model;
    const Goldens arrays(bundle_.file(golden.file));
    Verification found;
    Trajectory trajectory;
    const std::size_t groups = golden.guidance_scale > 1 ? 2 : 1;
    const Plan plan = arrays.plan();
    trajectory.plan = &plan;
    const RunEncoder run = [this](std::size_t encoder, const Ids& ids, const std::vector<std::int64_t>& layers) {
        return run_encoder(encoder, ids, layers);
    };
    trajectory.context = verified_texts(found, arrays, manifest(), tokenizers_, run, groups);
    const std::int64_t factor = model.vae_scale_factor, height = golden.height / factor, width = golden.width / factor;
    const auto draws = static_cast<std::int64_t>(plan.draw_count());
    trajectory.noise = arrays.floats("noise", {1 + draws, model.latent_channels, height, width});
    trajectory.guidance = Floats(Shape{static_cast<std::int64_t>(plan.calls()), static_cast<std::int64_t>(groups)});
    for (std::size_t call = 0; call < plan.calls(); ++call) {
        float* weights = trajectory.guidance.row(call);
        weights[groups - 1] = groups == 2 ? static_cast<float>(golden.guidance_scale) : 1.0f;
        if (groups == 2) weights[0] = static_cast<float>(1 - golden.guidance_scale);
    }
    for (const TensorSpec& spec : bundle_.graph("time").inputs)
        if (spec.name != "timesteps")
            trajectory.time_inputs.emplace_back(
                spec.name, last_rows(arrays.floats("input." + spec.name, {2, spec.shape[1].factor}), groups));
    if (bundle_.graph("denoise").takes("extra")) {
        Floats extra = arrays.floats("input.extra", {1, model.latent_channels + 1, height, width});
        extra.shape.erase(extra.shape.begin());
        trajectory.extra = std::move(extra);
    }
    const std::vector<Trajectory> all{trajectory};
    Denoising denoising(engines_, features_, manifest(), all);
    while (denoising.done() < denoising.calls()) denoising.call();
    const Floats latents = denoising.fetch(0);
    const Floats expected = arrays.floats("latents", {model.latent_channels, height, width});
    RelativeError error;
    error.add(latents.values.data(), expected.values.data(), expected.values.size());
    found.latents_error = error.value();
    found.psnr = psnr(decode_whole(latents).images, arrays.bytes("image", {golden.height, golden.width, 3}));
    return found;
}

}  // namespace lrt
