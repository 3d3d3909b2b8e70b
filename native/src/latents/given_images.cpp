#include "given_images.hpp"

#include "../base/error.hpp"
#include "../base/limits.hpp"
#include "../base/numbers.hpp"
#include "resize.hpp"

#include <algorithm>

namespace lrt {

namespace {

std::string sides(std::int64_t width, std::int64_t height) {
    return std::to_string(width) + "x" + std::to_string(height);
}

std::string numbered(const char* name, std::size_t index) {
    return std::string(name) + "[" + std::to_string(index) + "]";
}

std::vector<Bytes> opened(const char* name, const latentrt_pixels* pictures, std::size_t count) {
    if (count == 0) return {};
    if (count > static_cast<std::size_t>(limits().MAX_IMAGES))
        throw input_error(std::string(name) + " has " + std::to_string(count) + " pictures: expected 1 to " +
                          std::to_string(limits().MAX_IMAGES) + "; " + raised_by("MAX_IMAGES"));
    if (pictures == nullptr)
        throw input_error(std::string(name) + " is NULL, but its count is " + std::to_string(count));
    std::vector<Bytes> result;
    for (std::size_t i = 0; i < count; ++i) result.push_back(packed(numbered(name, i), pictures[i]));
    return result;
}

// Masks that classes or comparisons gave; as levels of 255 they would say that nothing is drawn anew.
void widen_levels(Bytes& mask) {
    if (*std::max_element(mask.values.begin(), mask.values.end()) == 1)
        for (std::uint8_t& value : mask.values) value = value != 0 ? 255 : 0;
}

// A mask that is drawn in the alpha channel: programs disagree whether transparent or opaque means redrawn.
void refuse_mask_in_alpha(const std::string& name, const Bytes& mask) {
    if (mask.shape[2] != 4) return;
    const std::uint8_t colour = mask.values[0], alpha = mask.values[3];
    bool one_colour = true, one_alpha = true;
    for (std::size_t i = 0; i < mask.values.size(); ++i) {
        if (i % 4 == 3)
            one_alpha = one_alpha && mask.values[i] == alpha;
        else
            one_colour = one_colour && mask.values[i] == colour;
    }
    if (one_colour && !one_alpha)
        throw input_error(name +
                          " has one colour and its shape in the alpha channel. Pass a grey image that is white "
                          "where the image is drawn anew: the alpha channel, or its inverse if transparent parts are "
                          "meant");
}

// The picture of each image: one for all, one for each prompt, or one for each image.
std::vector<std::size_t> rows_of(std::size_t count, std::size_t prompts, std::size_t per_prompt) {
    const std::size_t images = prompts * per_prompt;
    if (count != 1 && count != prompts && count != images)
        throw input_error(std::to_string(count) + " images for " + std::to_string(prompts) +
                          " prompts: pass one, or one per prompt");
    const std::size_t each = count == 1 ? images : count == prompts ? per_prompt : 1;
    std::vector<std::size_t> rows;
    for (std::size_t image = 0; image < images; ++image) rows.push_back(image / each);
    return rows;
}

// Arrays (1, …) of one shape as the rows of one array.
template <typename T, typename Make>
Array<T> stacked(std::size_t count, Make make) {
    Array<T> result;
    for (std::size_t i = 0; i < count; ++i) {
        const Array<T> row = make(i);
        if (i == 0) {
            result.shape = row.shape;
            result.shape[0] = static_cast<std::int64_t>(count);
            result.values.reserve(count * row.values.size());
        }
        result.values.insert(result.values.end(), row.values.begin(), row.values.end());
    }
    return result;
}

}  // namespace

Bytes packed(const std::string& name, const latentrt_pixels& picture) {
    const std::int64_t height = picture.height, width = picture.width, channels = picture.channels;
    if (height < 1 || width < 1 || (channels != 1 && channels != 3 && channels != 4))
        throw input_error(name + " has " + sides(width, height) + " pixels of " + std::to_string(channels) +
                          " channels: expected at least 1x1 pixels of 1, 3 or 4 channels");
    if (height * width > limits().MAX_PIXELS)
        throw input_error(name + " has " + sides(width, height) + " pixels: expected at most " +
                          grouped(static_cast<std::uint64_t>(limits().MAX_PIXELS)) + "; " + raised_by("MAX_PIXELS"));
    const auto row = static_cast<std::size_t>(width * channels), stride = picture.stride == 0 ? row : picture.stride;
    if (stride < row)
        throw input_error(name + " has a stride of " + std::to_string(stride) + " bytes: expected 0, or at least " +
                          std::to_string(row));
    if (picture.data == nullptr) throw input_error(name + " has no data");
    Bytes result({height, width, channels});
    for (std::size_t y = 0; y < static_cast<std::size_t>(height); ++y)
        std::copy_n(picture.data + y * stride, row, result.row(y));
    return result;
}

GivenImages::GivenImages(const latentrt_request& request, std::int64_t latent_channels)
    : request_(request), channels_(latent_channels) {
    const bool latents = request.image_latents_count != 0;
    if (latents && request.images_count != 0) throw input_error("images and image_latents: pass one of them");
    if (request.masks_count != 0 && request.images_count == 0 && !latents)
        throw input_error("masks needs an image: pass images");
    if (latents && request.image_latents == nullptr) throw input_error("image_latents is NULL, but its count is not 0");
    pictures_ = opened("images", request.images, request.images_count);
    masks_ = opened("masks", request.masks, request.masks_count);
    for (Bytes& mask : masks_) widen_levels(mask);
}

std::optional<ImageSize> GivenImages::size(std::int64_t factor) const {
    if (pictures_.empty()) return std::nullopt;
    const std::int64_t height = pictures_[0].shape[0], width = pictures_[0].shape[1];
    if (std::min(height, width) < factor)
        throw input_error("the image has " + sides(width, height) + " pixels; expected at least " +
                          sides(factor, factor) + ": pass height and width to enlarge it");
    return ImageSize{height / factor * factor, width / factor * factor};
}

std::optional<ImageInput> GivenImages::fitted(ImageSize size, std::int64_t factor, std::size_t prompts,
                                              std::size_t per_prompt) const {
    const ImageSize latent{size.height / factor, size.width / factor};
    const std::size_t count = count_of(latent);
    if (count == 0) return std::nullopt;
    if (pictures_.empty() && !masks_.empty())
        throw input_error("masks needs pixels, but image_latents has latents: decode them first");
    if (!masks_.empty() && masks_.size() != 1 && masks_.size() != count)
        throw input_error(std::to_string(masks_.size()) + " masks for " + std::to_string(count) +
                          " images: pass one, or one per image");
    const auto image_at = [&](std::size_t i) { return image_from(pictures_[i], size.height, size.width); };
    const auto mask_at = [&](std::size_t i) { return mask_from(masks_[i], size.height, size.width); };
    ImageInput input;
    input.rows = rows_of(count, prompts, per_prompt);
    if (pictures_.empty())
        input.latents = copied_latents(count, latent);
    else
        input.pixels = stacked<float>(count, image_at);
    for (std::size_t i = 0; i < masks_.size(); ++i) refuse_mask_in_alpha(numbered("masks", i), masks_[i]);
    if (masks_.size() == 1) {
        const Floats mask = mask_at(0);
        input.mask = stacked<float>(count, [&](std::size_t) { return mask; });
    } else if (!masks_.empty()) {
        input.mask = stacked<float>(count, mask_at);
    }
    return input;
}

// How many pictures there are. Latents are numbers without a shape, so the call's size says how many they are.
std::size_t GivenImages::count_of(ImageSize latent) const {
    if (request_.image_latents_count == 0) return pictures_.size();
    const Shape shape{channels_, latent.height, latent.width};
    const std::size_t each = elements(shape), count = request_.image_latents_count / each;
    if (count * each != request_.image_latents_count || count > static_cast<std::size_t>(limits().MAX_IMAGES))
        throw input_error("image_latents has " + grouped(request_.image_latents_count) +
                          " numbers, which are not 1 to " + std::to_string(limits().MAX_IMAGES) + " times " +
                          std::to_string(channels_) + "x" + sides(latent.height, latent.width) +
                          ": set height and width to those of the picture");
    return count;
}

Floats GivenImages::copied_latents(std::size_t count, ImageSize latent) const {
    const float* begin = request_.image_latents;
    Floats result({static_cast<std::int64_t>(count), channels_, latent.height, latent.width});
    std::copy_n(begin, result.values.size(), result.values.begin());
    if (!all_finite(result.values.data(), result.values.size())) throw input_error("image_latents has NaN or infinity");
    return result;
}

Floats ImageInput::masked_pixels() const {
    Floats result = pixels;
    for (std::size_t i = 0; i < mask.values.size(); ++i)
        for (std::size_t c = 0; c < 3; ++c) result.values[3 * i + c] *= mask.values[i] < 0.5f ? 1.0f : 0.0f;
    return result;
}

Floats ImageInput::latent_mask(std::int64_t factor) const {
    const std::int64_t height = mask.shape[2], width = mask.shape[3];
    Floats result({mask.rows(), 1, (height + factor - 1) / factor, (width + factor - 1) / factor});
    float* out = result.values.data();
    for (std::size_t n = 0; n < static_cast<std::size_t>(mask.rows()); ++n)
        for (std::int64_t y = 0; y < height; y += factor)
            for (std::int64_t x = 0; x < width; x += factor) *out++ = mask.row(n)[y * width + x];
    return result;
}

}  // namespace lrt
