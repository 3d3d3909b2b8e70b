// Functions of the C header for finished pictures.
#include "images.hpp"

#include "../base/numbers.hpp"
#include "../image/png.hpp"
#include "handles.hpp"

namespace lrt {

std::string unequal_text(const Verification& found, const Golden& golden) {
    std::string text = "the outputs are not the golden ones: ";
    text += found.ids_equal ? "ids are equal" : "the tokenizer returns other ids";
    text += "; text embedding: relative error " + general(found.embedding_error) + ", at most " +
            general(golden.embedding_tolerance);
    text +=
        "; latents: relative error " + general(found.latents_error) + ", at most " + general(golden.latents_tolerance);
    return text + "; picture: PSNR " + general(found.psnr) + " dB, at least " + general(golden.psnr_floor) + " dB";
}

}  // namespace lrt

size_t latentrt_images_count(const latentrt_images* images) {
    return images == nullptr ? 0 : images->drawn.seeds.size();
}

int32_t latentrt_images_height(const latentrt_images* images) {
    return images == nullptr ? 0 : static_cast<int32_t>(images->drawn.height);
}

int32_t latentrt_images_width(const latentrt_images* images) {
    return images == nullptr ? 0 : static_cast<int32_t>(images->drawn.width);
}

uint64_t latentrt_images_seed(const latentrt_images* images, size_t index) {
    return index < latentrt_images_count(images) ? images->drawn.seeds[index] : 0;
}

const uint8_t* latentrt_images_pixels(const latentrt_images* images, size_t index) {
    if (index >= latentrt_images_count(images) || images->drawn.pixels.values.empty()) return nullptr;
    return images->drawn.pixels.row(index);
}

const float* latentrt_images_latents(const latentrt_images* images, size_t index, size_t* shape) {
    const bool there = index < latentrt_images_count(images);
    for (std::size_t axis = 0; shape != nullptr && axis < 3; ++axis)
        shape[axis] = there ? static_cast<std::size_t>(images->drawn.latents.shape[axis + 1]) : 0;
    return there ? images->drawn.latents.row(index) : nullptr;
}

double latentrt_images_milliseconds(const latentrt_images* images, const char* stage) {
    if (images == nullptr || stage == nullptr) return 0;
    try {
        const auto found = images->drawn.milliseconds.find(stage);
        return found == images->drawn.milliseconds.end() ? 0 : found->second;
    } catch (...) {  // no memory for the key
        return 0;
    }
}

const char* latentrt_images_text(const latentrt_images* images, size_t index, const char* key) {
    if (index >= latentrt_images_count(images) || key == nullptr) return nullptr;
    for (const auto& [name, text] : images->drawn.texts[index])
        if (name == key) return text.c_str();
    return nullptr;
}

latentrt_status latentrt_images_png(const latentrt_images* images, size_t index, const uint8_t** data, size_t* length,
                                    latentrt_error** error) {
    if (data != nullptr) *data = nullptr;
    return lrt::guarded(error, [&] {
        if (data == nullptr || length == nullptr) throw lrt::input_error("data and length must not be NULL");
        const uint8_t* pixels = latentrt_images_pixels(images, index);
        if (pixels == nullptr)
            throw lrt::input_error("there is no picture of this index: it is out of range, or only latents were drawn");
        const std::lock_guard<std::mutex> lock(images->mutex);
        std::vector<std::uint8_t>& file = images->files[index];
        if (file.empty())
            file = lrt::png_file(pixels, images->drawn.height, images->drawn.width, images->drawn.texts[index]);
        *data = file.data();
        *length = file.size();
    });
}

void latentrt_images_free(latentrt_images* images) { delete images; }
