// The loop: the same graph M times, each call with its row of every table. Knows plans and tensors, no texts.
#pragma once

#include "../backends/engines.hpp"
#include "time_features.hpp"
#include "trajectory.hpp"

#include <cstddef>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace lrt {

// Images of equal sizes and plans of equal length, drawn together. Used by one thread.
class Denoising {
  public:
    Denoising(Engines& engines, TimeFeatures& features, const Manifest& manifest,
              const std::vector<Trajectory>& trajectories);

    std::size_t calls() const { return trajectories_.front().plan->calls(); }
    std::size_t done() const { return done_; }
    std::size_t images() const { return trajectories_.size(); }
    // One model call for all images.
    void call();
    // (B, C, h, w): register 0 is the sample, R - 1 the clean latents as predicted now.
    Floats fetch(std::size_t index);

  private:
    // An input of `denoise`, in its type.
    struct Input {
        std::vector<std::byte> bytes;
        std::size_t image_bytes = 0;  // of the rows of one image
        Value value;
        bool changes = false;  // with every call
    };
    using Inputs = std::map<std::string, Input>;

    Input zeros(const TensorSpec& spec, const Sizes& sizes) const;
    template <typename T>
    static T* of_image(Input& input, std::size_t image) {
        return reinterpret_cast<T*>(input.bytes.data() + image * input.image_bytes);
    }
    void fill_inputs();
    void fill_known();
    void write_row(std::size_t image);
    bool unguided() const;
    void copy_last_group();
    void bind(Binding& binding, Inputs& inputs, bool first) const;
    void run_blend();

    Engines& engines_;
    const Session& denoise_;
    const std::vector<Trajectory>& trajectories_;
    std::vector<std::shared_ptr<const Features>> features_;
    std::size_t groups_, done_ = 0, drawn_ = 0;
    Sizes sizes_;
    Shape state_shape_;
    Inputs inputs_, last_group_, known_;
    Floats first_state_;
    Value first_, states_[2];
    bool masked_ = false;
    std::size_t now_ = 0;
    std::optional<Binding> guided_binding_, last_group_binding_, blend_binding_;
};

}  // namespace lrt
