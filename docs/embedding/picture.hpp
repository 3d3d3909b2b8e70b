// From token ids, a plan and a seed to a picture: one image, with guidance or without.
#pragma once

#include "engine.hpp"
#include "noise.hpp"
#include "plan.hpp"

#include <array>
#include <cstring>

namespace latentrt {

struct Request {
    std::vector<std::vector<std::int64_t>> ids;  // of the negative text and the text, framed
    Plan plan;
    std::uint64_t seed = 0;
    float guidance_scale = 1;  // up to 1 (CFG++: 0): no guidance, the negative text is not used
    std::int64_t height = 0, width = 0;
};

struct Picture {
    std::int64_t height = 0, width = 0;
    std::vector<std::uint8_t> pixels;  // (height, width, 3)
    std::vector<float> latents;        // (channels, height / 8, width / 8)
};

// The engines of one bundle. A pipeline draws one picture at a time; its sessions may serve several threads.
class Pipeline {
  public:
    Pipeline(const Library& library, const Bundle& bundle, const Device& device)
        : bundle_(bundle), text_encoder_(library, bundle.graph("text_encoder"), device),
          context_(library, bundle.graph("context"), device), time_(library, bundle.graph("time"), device),
          denoise_(library, bundle.graph("denoise"), device),
          vae_decoder_(library, bundle.graph("vae_decoder"), device) {
        require_inputs(time_, {"timesteps"});
        require_inputs(denoise_, {"state", "coefficients", "guidance", "guidance_rescale", "noise", "time_features"});
    }

    Picture draw(const Request& request) {
        const std::int64_t factor = bundle_.vae_scale_factor, channels = bundle_.latent_channels;
        if (request.height < 1 || request.width < 1 || request.height % factor || request.width % factor)
            throw Error("height and width are multiples of " + std::to_string(factor));
        const std::vector<std::int64_t> shape{1, channels, request.height / factor, request.width / factor};
        Picture picture{request.height, request.width, {}, denoise(request, shape)};

        const auto outputs = vae_decoder_.run(inputs("latents", view(picture.latents.data(), shape)));
        // A NaN becomes a black pixel, so it must be looked for here.
        if (const std::int32_t bad = outputs.at(1).GetTensorData<std::int32_t>()[0])
            throw Error(std::to_string(bad) + " values of the picture are not finite");
        const auto* pixels = outputs.at(0).GetTensorData<std::uint8_t>();
        picture.pixels.assign(pixels, pixels + request.height * request.width * 3);
        return picture;
    }

  private:
    static std::map<std::string, Ort::Value> inputs(const std::string& name, Ort::Value value) {
        std::map<std::string, Ort::Value> result;
        result.emplace(name, std::move(value));
        return result;
    }

    // Other families have more inputs; what is not bound would be missed only while it runs.
    static void require_inputs(const Engine& engine, const std::set<std::string>& known) {
        for (const std::string& name : engine.graph().inputs)
            if (known.count(name) == 0 && name.rfind("key_", 0) != 0 && name.rfind("value_", 0) != 0)
                throw Error(engine.graph().file.string() + " has the input " + name +
                            ", which this example does not fill: see engines/README.md, \"Tensors\"");
    }

    // Keys and values of the groups' texts, in the order of the graph's outputs. Runs once per prompt.
    std::vector<Ort::Value> encode(const Request& request, std::int64_t groups) {
        const std::int64_t length = bundle_.text_encoder.max_length;
        std::vector<std::int64_t> ids;
        for (std::size_t row = request.ids.size() - std::size_t(groups); row < request.ids.size(); ++row)
            ids.insert(ids.end(), request.ids[row].begin(), request.ids[row].end());
        const auto encoded = text_encoder_.run(inputs("input_ids", view(ids.data(), {groups, length})));

        // (n, K, length, D): index 0 of K is clip_skip=0.
        const auto shape = encoded.at(0).GetTensorTypeAndShapeInfo().GetShape();
        const std::int64_t size = length * shape.at(3);
        const float* all = encoded.at(0).GetTensorData<float>();
        std::vector<float> hidden_states;
        for (std::int64_t group = 0; group < groups; ++group) {
            const float* first = all + group * shape.at(1) * size;
            hidden_states.insert(hidden_states.end(), first, first + size);
        }
        return context_.run(inputs("hidden_states", view(hidden_states.data(), {groups, length, shape.at(3)})));
    }

    // (M * groups, F) in the UNet's own type: the rows of call k are k * groups and those behind it.
    Ort::Value time_features(const Plan& plan, std::int64_t groups) {
        std::vector<float> timesteps;
        for (const float timestep : plan.timesteps) timesteps.insert(timesteps.end(), std::size_t(groups), timestep);
        return std::move(time_.run(inputs("timesteps", view(timesteps.data(), {std::int64_t(timesteps.size())})))[0]);
    }

    // Rows [first, first + count) of a host tensor of any type, not copied.
    static Ort::Value rows(Ort::Value& table, std::int64_t first, std::int64_t count) {
        const auto info = table.GetTensorTypeAndShapeInfo();
        const std::array<std::int64_t, 2> shape{count, info.GetShape().at(1)};
        const ONNXTensorElementDataType type = info.GetElementType();
        const std::size_t element = type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT ? 4 : 2;  // else float16, bfloat16
        const std::size_t row = std::size_t(shape[1]) * element;
        char* data = static_cast<char*>(table.GetTensorMutableRawData()) + std::size_t(first) * row;
        return Ort::Value::CreateTensor(host_memory(), data, std::size_t(count) * row, shape.data(), 2, type);
    }

    // The loop: the same graph M times, each call with its row of every table. Gives the finished latents.
    std::vector<float> denoise(const Request& request, const std::vector<std::int64_t>& shape) {
        const Plan& plan = request.plan;
        const std::int64_t registers = bundle_.registers, columns = registers + 2;
        const std::size_t size = std::size_t(shape[1] * shape[2] * shape[3]);
        const std::vector<std::int64_t> state_shape{1, registers, shape[1], shape[2], shape[3]};

        // No guidance is one group of weight 1; guidance is a weighted sum of [negative, positive].
        const bool guided = plan.guides(request.guidance_scale);
        std::vector<float> guidance(guided ? 2 : 1, 1.0f);
        const std::int64_t groups = std::int64_t(guidance.size());
        const float rescale = 0;
        const std::vector<Ort::Value> context = encode(request, groups);
        Ort::Value features = time_features(plan, groups);

        TorchGenerator generator(request.seed);
        std::vector<float> noise = generator.randn(size);
        std::vector<float> state(std::size_t(registers) * size);
        for (std::size_t r = 0; r < std::size_t(registers); ++r)
            for (std::size_t i = 0; i < size; ++i) state[r * size + i] = plan.initial[2 * r] * noise[i];

        Ort::IoBinding binding = denoise_.binding();
        for (std::size_t i = 0; i < context.size(); ++i)
            binding.BindInput(context_.graph().outputs[i].c_str(), context[i]);
        binding.BindInput("guidance_rescale", view(&rescale, {1}));

        // A call reads every row of the state for each row that it writes: two buffers take turns. The first state
        // comes from the host, and the last one goes there.
        Ort::Value turns[] = {denoise_.buffer(state_shape), denoise_.buffer(state_shape)};
        const Ort::Value host = view(state.data(), state_shape);
        const std::vector<float> silence(size);  // unused noise is zero: 0 * NaN is NaN
        std::vector<float> result(state.size());
        const Ort::Value finished = view(result.data(), state_shape);
        for (std::size_t k = 0; k < plan.calls(); ++k) {
            if (plan.draws[k]) noise = generator.randn(size);
            const float scale = plan.scale_of(k, request.guidance_scale);
            if (guided) guidance = {1.0f - scale, scale};
            binding.BindInput("guidance", view(guidance.data(), {1, groups}));
            binding.BindInput("state", k == 0 ? host : turns[k % 2]);
            binding.BindInput("coefficients",
                              view(&plan.coefficients[k * std::size_t(registers * columns)], {1, registers, columns}));
            binding.BindInput("noise", view((plan.draws[k] ? noise : silence).data(), shape));
            binding.BindInput("time_features", rows(features, std::int64_t(k) * groups, groups));
            binding.BindOutput("next_state", k + 1 == plan.calls() ? finished : turns[(k + 1) % 2]);
            denoise_.run(binding);
        }
        result.resize(size);  // row 0
        return result;
    }

    Bundle bundle_;
    Engine text_encoder_, context_, time_, denoise_, vae_decoder_;
};

}  // namespace latentrt
