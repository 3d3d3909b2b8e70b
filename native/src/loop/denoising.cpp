#include "denoising.hpp"

#include "../base/error.hpp"

#include <algorithm>
#include <cstring>

namespace lrt {

namespace {

constexpr const char* CHANGING[] = {"coefficients", "guidance", "guidance_rescale", "noise", "time_features"};

// Whether a call takes the last group's prediction alone.
bool takes_last(const Trajectory& trajectory, std::size_t call) {
    const float* weights = trajectory.guidance.row(call);
    const std::size_t groups = trajectory.guidance.stride();
    return weights[groups - 1] == 1 && std::all_of(weights, weights + groups - 1, [](float w) { return w == 0; });
}

}  // namespace

Denoising::Denoising(Engines& engines, TimeFeatures& features, const Manifest& manifest,
                     const std::vector<Trajectory>& trajectories)
    : engines_(engines),
      denoise_(engines.get("denoise")),
      trajectories_(trajectories),
      groups_(static_cast<std::size_t>(trajectories.front().context.rows())) {
    const Shape& noise = trajectories.front().noise.shape;
    const auto images = static_cast<std::int64_t>(trajectories.size());
    sizes_ = {{'B', images},
              {'G', static_cast<std::int64_t>(groups_)},
              {'h', noise[2]},
              {'w', noise[3]},
              {'S', trajectories.front().context.shape[1]}};
    state_shape_ = {images, manifest.model.registers, noise[1], noise[2], noise[3]};
    for (const TensorSpec& spec : denoise_.spec().inputs)
        if (spec.name != "state") inputs_.emplace(spec.name, zeros(spec, sizes_));
    for (const char* name : CHANGING) inputs_.at(name).changes = true;
    for (const Trajectory& trajectory : trajectories) {
        features_.push_back(features.of(trajectory));
        masked_ = masked_ || !trajectory.mask.values.empty();
    }
    fill_inputs();
    if (masked_ || !engines.device().is_cpu()) fill_known();
    for (Value& state : states_) state = denoise_.buffer(state_shape_, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT);
    guided_binding_.emplace(denoise_);
    bind(*guided_binding_, inputs_, true);
}

// Zeros: a coefficient of 0 does not remove a NaN that happened to lie in unused memory.
Denoising::Input Denoising::zeros(const TensorSpec& spec, const Sizes& sizes) const {
    const Shape shape = shape_at(spec, sizes);
    const ONNXTensorElementDataType type = element_type(spec.dtype);
    Input input;
    input.bytes.resize(elements(shape) * bytes_of(type));
    input.image_bytes = input.bytes.size() / trajectories_.size();
    input.value = Value::over(denoise_.library(), input.bytes.data(), shape, type);
    return input;
}

// What stays for all calls: keys and values, the extra channels, and the first state.
void Denoising::fill_inputs() {
    const Session& context = engines_.get("context");
    first_state_ = Floats(state_shape_);
    for (std::size_t image = 0; image < trajectories_.size(); ++image) {
        const Trajectory& trajectory = trajectories_[image];
        const Value states = Value::over(context.library(), trajectory.context);
        const std::vector<Value> outputs = context.run({{"hidden_states", &states}});
        for (std::size_t i = 0; i < outputs.size(); ++i) {
            Input& input = inputs_.at(context.spec().outputs[i].name);
            if (outputs[i].bytes() != input.image_bytes) throw backend_error("context returned keys of another size");
            std::memcpy(of_image<std::byte>(input, image), outputs[i].data(), input.image_bytes);
        }
        if (!trajectory.extra.values.empty())
            std::copy(trajectory.extra.values.begin(), trajectory.extra.values.end(),
                      of_image<float>(inputs_.at("extra"), image));
        const std::size_t size = trajectory.noise.stride();
        for (std::size_t r = 0; r < static_cast<std::size_t>(state_shape_[1]); ++r) {
            const float of_noise = trajectory.plan->initial[2 * r], of_clean = trajectory.plan->initial[2 * r + 1];
            float* out = first_state_.row(image) + r * size;
            for (std::size_t i = 0; i < size; ++i) out[i] = of_noise * trajectory.noise.values[i];
            for (std::size_t i = 0; i < trajectory.clean.values.size(); ++i)
                out[i] += of_clean * trajectory.clean.values[i];
        }
    }
    first_ = Value::over(denoise_.library(), first_state_);
}

// Inputs of `blend`. An image without a mask keeps its whole state: 1 * state + 0 * 0.
void Denoising::fill_known() {
    for (const TensorSpec& spec : engines_.get("blend").spec().inputs)
        if (spec.name != "state") known_.emplace(spec.name, zeros(spec, sizes_));
    known_.at("blend").changes = true;
    for (std::size_t image = 0; image < trajectories_.size(); ++image) {
        const Trajectory& trajectory = trajectories_[image];
        float* mask = of_image<float>(known_.at("mask"), image);
        std::fill_n(mask, known_.at("mask").image_bytes / sizeof(float), 1.0f);
        if (trajectory.mask.values.empty()) continue;
        std::copy(trajectory.mask.values.begin(), trajectory.mask.values.end(), mask);
        std::copy(trajectory.clean.values.begin(), trajectory.clean.values.end(),
                  of_image<float>(known_.at("clean"), image));
        std::copy_n(trajectory.noise.values.begin(), trajectory.noise.stride(),
                    of_image<float>(known_.at("noise"), image));
    }
}

void Denoising::write_row(std::size_t image) {
    const Trajectory& trajectory = trajectories_[image];
    const Plan& plan = *trajectory.plan;
    const std::size_t table = inputs_.at("coefficients").image_bytes / sizeof(float);
    std::copy_n(&plan.coefficients[done_ * table], table, of_image<float>(inputs_.at("coefficients"), image));
    std::copy_n(trajectory.guidance.row(done_), groups_, of_image<float>(inputs_.at("guidance"), image));
    *of_image<float>(inputs_.at("guidance_rescale"), image) =
        takes_last(trajectory, done_) ? 0.0f : trajectory.guidance_rescale;
    Input& features = inputs_.at("time_features");
    std::memcpy(of_image<std::byte>(features, image),
                features_[image]->bytes.data() + done_ * groups_ * features_[image]->row_bytes, features.image_bytes);
    float* noise = of_image<float>(inputs_.at("noise"), image);
    const std::size_t size = trajectory.noise.stride();
    if (plan.draws[done_] != 0) {
        std::copy_n(trajectory.noise.row(drawn_ + 1), size, noise);
    } else {
        std::fill_n(noise, size, 0.0f);
    }
    if (!known_.empty()) std::copy_n(&plan.blend[2 * done_], 2, of_image<float>(known_.at("blend"), image));
}

bool Denoising::unguided() const {
    return groups_ > 1 && std::all_of(trajectories_.begin(), trajectories_.end(),
                                      [&](const Trajectory& trajectory) { return takes_last(trajectory, done_); });
}

// The inputs of a call with one group. Keys and values are copied once, time features always.
void Denoising::copy_last_group() {
    const bool first = last_group_.empty();
    for (const TensorSpec& spec : denoise_.spec().inputs) {
        if (spec.name == "state" || spec.shape[0].symbols != "BG") continue;
        Input& all = inputs_.at(spec.name);
        if (first) {
            Sizes sizes = sizes_;
            sizes['G'] = 1;
            last_group_.emplace(spec.name, zeros(spec, sizes)).first->second.changes = all.changes;
        } else if (!all.changes) {
            continue;
        }
        Input& last = last_group_.at(spec.name);
        for (std::size_t image = 0; image < trajectories_.size(); ++image)
            std::memcpy(of_image<std::byte>(last, image),
                        of_image<std::byte>(all, image) + (groups_ - 1) * last.image_bytes, last.image_bytes);
    }
    if (!first) return;
    Sizes sizes = sizes_;
    sizes['G'] = 1;
    Input& guidance = last_group_.emplace("guidance", zeros(*denoise_.spec().input("guidance"), sizes)).first->second;
    std::fill_n(of_image<float>(guidance, 0), trajectories_.size(), 1.0f);
    last_group_binding_.emplace(denoise_);
    bind(*last_group_binding_, inputs_, true);
    bind(*last_group_binding_, last_group_, true);
}

// On a CPU what is bound is read at each run; on a GPU it is copied when it is bound.
void Denoising::bind(Binding& binding, Inputs& inputs, bool first) const {
    for (auto& [name, input] : inputs)
        if (first || (input.changes && !engines_.device().is_cpu())) binding.input(name, input.value);
}

void Denoising::call() {
    for (std::size_t image = 0; image < trajectories_.size(); ++image) write_row(image);
    const bool last_group = unguided();
    if (last_group) copy_last_group();
    Binding& binding = last_group ? *last_group_binding_ : *guided_binding_;
    bind(binding, inputs_, false);
    if (last_group) bind(binding, last_group_, false);
    binding.input("state", done_ == 0 ? first_ : states_[now_]);
    binding.output("next_state", states_[1 - now_]);
    binding.run();
    now_ = 1 - now_;
    if (masked_) run_blend();
    if (trajectories_.front().plan->draws[done_] != 0) ++drawn_;
    ++done_;
}

// From the state to the other buffer.
void Denoising::run_blend() {
    if (!blend_binding_) {
        blend_binding_.emplace(engines_.get("blend"));
        bind(*blend_binding_, known_, true);
    }
    bind(*blend_binding_, known_, false);
    blend_binding_->input("state", states_[now_]);
    blend_binding_->output("next_state", states_[1 - now_]);
    blend_binding_->run();
    now_ = 1 - now_;
}

Floats Denoising::fetch(std::size_t index) {
    Floats host(state_shape_);
    const float* all = nullptr;
    if (engines_.device().is_cpu()) {
        all = static_cast<const float*>(states_[now_].data());
    } else {
        // A copy to the host without functions of CUDA: `blend` with a mask of ones gives the state as it is.
        Binding copy(engines_.get("blend"));
        const Value target = Value::over(denoise_.library(), host);
        std::vector<float> ones(known_.at("mask").bytes.size() / sizeof(float), 1.0f);
        const Value mask = Value::over(denoise_.library(), ones.data(), known_.at("mask").value.shape(),
                                       ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT);
        for (auto& [name, input] : known_) copy.input(name, name == "mask" ? mask : input.value);
        copy.input("state", states_[now_]);
        copy.output("next_state", target);
        copy.run();
        all = host.values.data();
    }
    Floats result(Shape{state_shape_[0], state_shape_[2], state_shape_[3], state_shape_[4]});
    const std::size_t size = result.stride(), registers = static_cast<std::size_t>(state_shape_[1]);
    for (std::size_t image = 0; image < trajectories_.size(); ++image)
        std::copy_n(all + (image * registers + index) * size, size, result.row(image));
    return result;
}

}  // namespace lrt
