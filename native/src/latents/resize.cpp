#include "resize.hpp"

#include "../base/error.hpp"
#include "../base/limits.hpp"

#include <algorithm>
#include <cmath>
#include <string>

namespace lrt {

namespace {

constexpr double SUPPORT = 3;          // of Lanczos, in pixels of the smaller scale
constexpr int PRECISION = 32 - 8 - 2;  // bits behind the point of a coefficient, as in Pillow
constexpr std::int64_t LONGEST_SIDE = std::int64_t{1} << 20;
constexpr double PI = 3.14159265358979323846;

// The input pixels that make one output pixel, and their weights.
struct Window {
    std::size_t first = 0;
    std::vector<std::int32_t> weights;
};

double sinc(double x) { return x == 0 ? 1 : std::sin(x * PI) / (x * PI); }

double lanczos(double x) { return -SUPPORT <= x && x < SUPPORT ? sinc(x) * sinc(x / 3) : 0; }

std::int32_t fixed_point(double weight) {
    return static_cast<std::int32_t>((weight < 0 ? -0.5 : 0.5) + weight * (1 << PRECISION));
}

Window window_at(std::int64_t place, double scale, std::int64_t size) {
    const double wide = std::max(scale, 1.0), narrow = 1 / wide, support = SUPPORT * wide;
    const double center = (static_cast<double>(place) + 0.5) * scale;
    const auto begin = std::max(static_cast<std::int64_t>(center - support + 0.5), std::int64_t{0});
    const auto end = std::min(static_cast<std::int64_t>(center + support + 0.5), size);

    std::vector<double> weights;
    double sum = 0;
    for (std::int64_t i = begin; i < end; ++i) {
        weights.push_back(lanczos((static_cast<double>(i) - center + 0.5) * narrow));
        sum += weights.back();
    }
    Window window{static_cast<std::size_t>(begin), {}};
    for (const double weight : weights) window.weights.push_back(fixed_point(sum != 0 ? weight / sum : weight));
    return window;
}

std::vector<Window> windows(std::int64_t from, std::int64_t to) {
    std::vector<Window> result;
    result.reserve(static_cast<std::size_t>(to));
    const double scale = static_cast<double>(from) / static_cast<double>(to);
    for (std::int64_t place = 0; place < to; ++place) result.push_back(window_at(place, scale, from));
    return result;
}

// A weighted sum of bytes that lie `stride` apart.
std::uint8_t weighted(const Window& window, const std::uint8_t* bytes, std::size_t stride) {
    std::int32_t sum = 1 << (PRECISION - 1);
    for (const std::int32_t weight : window.weights) {
        sum += weight * *bytes;
        bytes += stride;
    }
    return static_cast<std::uint8_t>(std::clamp(sum >> PRECISION, 0, 255));
}

Bytes horizontal(const Bytes& picture, std::int64_t width) {
    const auto channels = static_cast<std::size_t>(picture.shape[2]);
    const std::vector<Window> columns = windows(picture.shape[1], width);
    Bytes result({picture.rows(), width, picture.shape[2]});
    std::uint8_t* out = result.values.data();
    for (std::size_t y = 0; y < static_cast<std::size_t>(picture.rows()); ++y)
        for (const Window& window : columns)
            for (std::size_t c = 0; c < channels; ++c)
                *out++ = weighted(window, picture.row(y) + window.first * channels + c, channels);
    return result;
}

Bytes vertical(const Bytes& picture, std::int64_t height) {
    const std::size_t stride = picture.stride();
    Bytes result({height, picture.shape[1], picture.shape[2]});
    std::uint8_t* out = result.values.data();
    for (const Window& window : windows(picture.rows(), height))
        for (std::size_t x = 0; x < stride; ++x) *out++ = weighted(window, picture.row(window.first) + x, stride);
    return result;
}

// value * alpha / 255, rounded.
std::uint8_t multiplied(std::uint8_t value, std::uint8_t alpha) {
    const unsigned product = unsigned{value} * alpha + 128;
    return static_cast<std::uint8_t>(((product >> 8) + product) >> 8);
}

void multiply_with_alpha(Bytes& picture) {
    for (std::size_t i = 0; i < picture.values.size(); i += 4)
        for (std::size_t c = i; c < i + 3; ++c)
            picture.values[c] = multiplied(picture.values[c], picture.values[i + 3]);
}

void divide_by_alpha(Bytes& picture) {
    for (std::size_t i = 0; i < picture.values.size(); i += 4)
        if (const unsigned alpha = picture.values[i + 3]; alpha != 0 && alpha != 255)
            for (std::size_t c = i; c < i + 3; ++c)
                picture.values[c] = static_cast<std::uint8_t>(std::min(255u, 255u * picture.values[c] / alpha));
}

// The order of the passes is seen where the first one clips. This is that of Pillow 13; earlier ones begin with the
// horizontal pass always.
bool is_vertical_first(const Bytes& picture, std::int64_t height, std::int64_t width) {
    const std::int64_t fewer_rows = picture.shape[0] - height, fewer_columns = picture.shape[1] - width;
    return fewer_rows > 0 && fewer_rows > 2 * fewer_columns;
}

void require_moderate(const Bytes& picture, std::int64_t height, std::int64_t width) {
    const std::int64_t longest = std::max({picture.shape[0], picture.shape[1], height, width});
    const bool rows_first = is_vertical_first(picture, height, width);
    const std::int64_t between = rows_first ? height * picture.shape[1] : picture.shape[0] * width;
    if (longest > LONGEST_SIDE || between > limits().MAX_NOISE / 16)
        throw input_error("a picture of " + std::to_string(picture.shape[1]) + "x" + std::to_string(picture.shape[0]) +
                          " pixels is too slender to become one of " + std::to_string(width) + "x" +
                          std::to_string(height) + ": resize it before");
}

Floats floats_from(const Bytes& picture, Shape shape) {
    Floats result(std::move(shape));
    std::transform(picture.values.begin(), picture.values.end(), result.values.begin(),
                   [](std::uint8_t value) { return static_cast<float>(value) / 255.0f; });
    return result;
}

}  // namespace

Bytes rgb_from(Bytes picture) {
    const auto channels = static_cast<std::size_t>(picture.shape[2]);
    if (channels == 3) return picture;
    Bytes result({picture.shape[0], picture.shape[1], 3});
    const std::size_t pixels = picture.values.size() / channels;
    for (std::size_t i = 0; i < pixels; ++i)
        for (std::size_t c = 0; c < 3; ++c)
            result.values[3 * i + c] = picture.values[channels * i + (channels == 1 ? 0 : c)];
    return result;
}

Bytes grey_from(Bytes picture) {
    const auto channels = static_cast<std::size_t>(picture.shape[2]);
    if (channels == 1) return picture;
    Bytes result({picture.shape[0], picture.shape[1], 1});
    const std::uint8_t* pixel = picture.values.data();
    for (std::uint8_t& grey : result.values) {
        grey = static_cast<std::uint8_t>((pixel[0] * 19595u + pixel[1] * 38470u + pixel[2] * 7471u + 0x8000u) >> 16);
        pixel += channels;
    }
    return result;
}

Bytes resized(Bytes picture, std::int64_t height, std::int64_t width) {
    if (picture.shape[0] == height && picture.shape[1] == width) return picture;
    require_moderate(picture, height, width);
    const bool alpha = picture.shape[2] == 4;
    if (alpha) multiply_with_alpha(picture);
    const bool rows_first = is_vertical_first(picture, height, width);
    if (rows_first) picture = vertical(picture, height);
    if (picture.shape[1] != width) picture = horizontal(picture, width);
    if (!rows_first && picture.shape[0] != height) picture = vertical(picture, height);
    if (alpha) divide_by_alpha(picture);
    return picture;
}

Floats image_from(Bytes picture, std::int64_t height, std::int64_t width) {
    Floats result = floats_from(resized(rgb_from(std::move(picture)), height, width), {1, height, width, 3});
    for (float& value : result.values) value = value * 2.0f - 1.0f;
    return result;
}

Floats mask_from(Bytes picture, std::int64_t height, std::int64_t width) {
    Floats result = floats_from(grey_from(resized(std::move(picture), height, width)), {1, 1, height, width});
    for (float& value : result.values) value = value >= 0.5f ? 1.0f : 0.0f;
    return result;
}

}  // namespace lrt
