// The pictures and masks of a call, checked and brought to its size. See runtime/latents/given_images.py.
#pragma once

#include "../base/array.hpp"

#include <latentrt/latentrt.h>

#include <optional>
#include <string>
#include <vector>

namespace lrt {

// Pictures at the size of the call. What was not given has no values.
struct ImageInput {
    Floats pixels;                  // (n, H, W, 3) in [-1, 1]; none where latents were given
    Floats latents;                 // (n, C, h, w), scaled like the UNet's; none where pixels were given
    Floats mask;                    // (n, 1, H, W), 1 where the picture is drawn anew
    std::vector<std::size_t> rows;  // the picture of each image to draw

    bool has_latents() const { return !latents.values.empty(); }
    bool has_mask() const { return !mask.values.empty(); }
    // The pictures with the part to draw anew in grey.
    Floats masked_pixels() const;
    // The mask at latent resolution, the nearest pixel: (n, 1, h, w).
    Floats latent_mask(std::int64_t factor) const;
};

struct ImageSize {
    std::int64_t height = 0, width = 0;
};

// A picture without gaps between its rows. Throws, with its name, for sizes that are wrong.
Bytes packed(const std::string& name, const latentrt_pixels& picture);

// What the caller gave; `fitted` resizes it. The latents are not copied.
class GivenImages {
  public:
    // Throws for values that are not pictures, or a mask without a picture.
    GivenImages(const latentrt_request& request, std::int64_t latent_channels);

    // Default height and width: those of the first picture, rounded down to a multiple of the VAE's factor. Nothing
    // without a picture.
    std::optional<ImageSize> size(std::int64_t factor) const;

    // The pictures resized, for `prompts * per_prompt` images; nothing where none were given. The size is a multiple
    // of the factor, and not beyond the limits.
    std::optional<ImageInput> fitted(ImageSize size, std::int64_t factor, std::size_t prompts,
                                     std::size_t per_prompt) const;

  private:
    std::size_t count_of(ImageSize latent) const;
    Floats copied_latents(std::size_t count, ImageSize latent) const;

    const latentrt_request& request_;
    std::int64_t channels_;
    std::vector<Bytes> pictures_, masks_;
};

}  // namespace lrt
