// PyTorch's random noise for a seed. See runtime/latents/noise.py.
#pragma once

#include <latentrt/latentrt.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace lrt {

// Draws the values of torch.randn(count, generator=torch.Generator(device).manual_seed(seed)) in float32.
class TorchGenerator {
  public:
    TorchGenerator(std::uint64_t seed, latentrt_rng rng);
    ~TorchGenerator();
    TorchGenerator(TorchGenerator&&) noexcept;

    std::vector<float> randn(std::size_t count);

  private:
    struct Source;
    std::unique_ptr<Source> source_;
};

}  // namespace lrt
