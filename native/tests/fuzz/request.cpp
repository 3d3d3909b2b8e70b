// Whole calls: every field of latentrt_request from the input, for each kind of model, with a pack of a few plans.
#include "../../src/request/request.hpp"
#include "../../src/api/structs.hpp"
#include "../../src/base/utf8.hpp"
#include "../../src/bundle/bundle.hpp"
#include "input.hpp"

#include <deque>
#include <limits>

namespace {

using fuzz::Input;

// What a request points to.
struct Owned {
    std::deque<std::string> texts;
    std::deque<std::vector<latentrt_text>> lists;
    std::deque<std::vector<std::uint8_t>> bytes;
    std::deque<std::vector<latentrt_pixels>> pictures;
    std::vector<double> scales;
    std::vector<std::uint64_t> seeds;
    std::deque<std::vector<float>> floats;
};

// Mostly small; sometimes one that is hardly ever right. `real` may be believed.
std::size_t count_of(Input& input, std::size_t real) {
    const std::size_t kind = input.below(16);
    return kind == 15 ? std::numeric_limits<std::size_t>::max() : kind == 14 ? std::size_t{1} << 40 : real;
}

double double_of(Input& input, double usual) {
    switch (input.below(6)) {
        case 0: return input.number<double>();
        case 1: return input.number<std::uint8_t>() / 255.0;
        case 2: return input.number<std::int16_t>() / 100.0;
        default: return usual;
    }
}

std::int32_t integer_of(Input& input, std::int32_t usual) {
    switch (input.below(6)) {
        case 0: return input.number<std::int32_t>();
        case 1: return input.number<std::int8_t>();
        case 2: return 8 * input.number<std::uint8_t>();
        default: return usual;
    }
}

latentrt_text text_of(Input& input, Owned& owned) {
    if (input.below(16) == 15) return {nullptr, input.number<std::uint8_t>()};
    const std::string& text = owned.texts.emplace_back(input.text());
    return {text.c_str(), input.below(4) == 3 ? LATENTRT_NUL : text.size()};
}

void take_texts(Input& input, Owned& owned, const latentrt_text*& texts, std::size_t& count) {
    const std::size_t real = input.below(4);
    std::vector<latentrt_text>& list = owned.lists.emplace_back();
    for (std::size_t i = 0; i < real; ++i) list.push_back(text_of(input, owned));
    const bool none = input.below(16) == 15;
    texts = none ? nullptr : list.data();
    count = none ? count_of(input, real) : real;
}

void take_pixels(Input& input, Owned& owned, const latentrt_pixels*& pixels, std::size_t& count) {
    const std::size_t real = input.below(8) < 4 ? 0 : input.below(3);
    std::vector<latentrt_pixels>& list = owned.pictures.emplace_back();
    for (std::size_t i = 0; i < real; ++i) {
        constexpr std::int32_t CHANNELS[] = {1, 3, 4, 1, 3, 4, 2, 0};
        const auto height = static_cast<std::int32_t>(input.number<std::uint8_t>() % 40);
        const auto width = static_cast<std::int32_t>(input.number<std::uint8_t>() % 40);
        const std::int32_t channels = CHANNELS[input.below(8)];
        const std::size_t row = static_cast<std::size_t>(width * channels), stride = row + input.below(4);
        // The last row ends with its pixels.
        const std::size_t all = height == 0 ? 0 : static_cast<std::size_t>(height - 1) * stride + row;
        std::vector<std::uint8_t>& data = owned.bytes.emplace_back(all, input.number<std::uint8_t>());
        const std::string_view given = input.bytes(std::min<std::size_t>(all, 64));
        std::copy(given.begin(), given.end(), data.begin());
        list.push_back({data.data(), height, width, channels, stride == row && input.below(2) == 1 ? 0 : stride});
        if (input.below(16) == 15) list.back() = {nullptr, integer_of(input, 8), integer_of(input, 8), 3, 0};
    }
    pixels = list.data();
    count = real;
}

void take_floats(Input& input, Owned& owned, const float*& values, std::size_t& count) {
    values = nullptr;
    count = 0;
    const std::size_t kind = input.below(8);
    if (kind < 6) return;
    const std::size_t size = kind == 6 ? 4 * (input.number<std::uint8_t>() % 64) : std::size_t{4} * 16 * 16;
    std::vector<float>& list = owned.floats.emplace_back(size, input.number<float>());
    values = list.data();
    count = size;
}

latentrt_pair pair_of(Input& input) {
    if (input.below(4) != 3) return {-1, -1};
    return {integer_of(input, 64), integer_of(input, 64)};
}

latentrt_request request_of(Input& input, Owned& owned) {
    latentrt_request given{};
    lrt::set_defaults(given);
    given.num_images_per_prompt = integer_of(input, 1);
    given.height = integer_of(input, 0);
    given.width = integer_of(input, 0);
    take_texts(input, owned, given.prompts, given.prompts_count);
    take_texts(input, owned, given.negative_prompts, given.negative_prompts_count);
    take_texts(input, owned, given.prompts_2, given.prompts_2_count);
    take_texts(input, owned, given.negative_prompts_2, given.negative_prompts_2_count);
    constexpr const char* NAMES[] = {"euler_a", "lcm", "euler_cfg_pp", "Euler a"};
    const std::size_t name = input.below(8);
    if (name < 4) given.scheduler = {NAMES[name], LATENTRT_NUL};
    if (name == 4) given.scheduler = text_of(input, owned);
    const auto usual = static_cast<std::int32_t>(1 + input.below(3));
    given.num_inference_steps = input.below(4) == 3 ? integer_of(input, 2) : usual;
    for (std::size_t i = input.below(4); i-- > 0;) owned.scales.push_back(double_of(input, 7.5));
    given.guidance_scales = owned.scales.data();
    given.guidance_scales_count = owned.scales.size();
    for (std::size_t i = input.below(4); i-- > 0;) owned.seeds.push_back(input.number<std::uint64_t>());
    given.seeds = owned.seeds.data();
    given.seeds_count = owned.seeds.size();
    given.guidance_rescale = double_of(input, 0);
    given.guidance_start = double_of(input, 0);
    given.guidance_end = double_of(input, 1);
    given.strength = double_of(input, LATENTRT_DEFAULT);
    given.noise_seed_delta = input.below(4) == 3 ? input.number<std::int64_t>() : 0;
    take_pixels(input, owned, given.images, given.images_count);
    take_pixels(input, owned, given.masks, given.masks_count);
    take_floats(input, owned, given.latents, given.latents_count);
    take_floats(input, owned, given.image_latents, given.image_latents_count);
    given.clip_skip = integer_of(input, 0);
    for (latentrt_pair* pair :
         {&given.original_size, &given.crops_coords_top_left, &given.target_size, &given.negative_original_size,
          &given.negative_crops_coords_top_left, &given.negative_target_size})
        *pair = pair_of(input);
    given.vae_tiling = integer_of(input, 0);
    // Any integer, as a program in C may give one.
    for (auto* choice : {reinterpret_cast<char*>(&given.rng), reinterpret_cast<char*>(&given.prompt_syntax),
                         reinterpret_cast<char*>(&given.long_prompt), reinterpret_cast<char*>(&given.output)}) {
        const std::int32_t value = input.below(16) == 15 ? integer_of(input, 3) : static_cast<int>(input.below(2));
        std::memcpy(choice, &value, sizeof value);
    }
    if (input.below(16) == 15) given.prompts = nullptr;
    if (input.below(16) == 15) given.seeds = nullptr;
    if (input.below(16) == 15) given.guidance_scales = nullptr;
    return given;
}

void check_request(const lrt::Request& request, const lrt::Manifest& manifest) {
    const std::size_t images = request.images();
    fuzz::check(images > 0 && request.guidance_scales.size() == images && request.plan->calls() > 0);
    fuzz::check(request.height % manifest.model.vae_scale_factor == 0 && request.height > 0);
    fuzz::check(request.width % manifest.model.vae_scale_factor == 0 && request.width > 0);
    for (const lrt::Side& side : request.sides()) {
        fuzz::check(side.texts.size() == manifest.model.text_encoders.size());
        for (const auto& texts : side.texts) {
            fuzz::check(texts.size() == images);
            for (const std::string& text : texts) fuzz::check(lrt::decoded(text).has_value());
        }
    }
    for (std::size_t image = 0; image < images; ++image)
        fuzz::check(request.guidance(image).rows() == static_cast<std::int64_t>(request.plan->calls()));
    if (!request.image) return;
    fuzz::check(request.image->rows.size() == images);
    if (!request.image->has_mask()) return;
    request.image->masked_pixels();
    request.image->latent_mask(manifest.model.vae_scale_factor);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    static const std::vector<lrt::Manifest> manifests = [] {
        std::vector<lrt::Manifest> all;
        for (const char* name : fuzz::MANIFESTS) all.push_back(lrt::manifest_from(fuzz::data_file(name)));
        for (lrt::Manifest& manifest : all) {  // as open_bundle; and small, so that little is resized
            manifest.scheduler_class = "DDIMScheduler";
            manifest.defaults.height = manifest.defaults.width = 32;
        }
        return all;
    }();
    static const lrt::PlanPacks packs = [] {
        lrt::PlanPacks all;
        all.add(FUZZ_DATA "/small.plans", "v_prediction");
        return all;
    }();
    Input input(data, size);
    const lrt::Manifest& manifest = manifests[input.below(manifests.size())];
    Owned owned;
    const latentrt_request given = request_of(input, owned);
    // Sizes that are right and large would only take time.
    if (std::int64_t{given.height} * given.width > (1 << 20) && given.images_count + given.masks_count > 0) return 0;
    try {
        check_request(lrt::request_from(given, nullptr, manifest, packs), manifest);
    } catch (const lrt::Error& error) {
        fuzz::check(error.status() == LATENTRT_INPUT || error.status() == LATENTRT_SCHEDULER);
        fuzz::check(lrt::decoded(error.what()).has_value());
    }
    return 0;
}
