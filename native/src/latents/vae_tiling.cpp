#include "vae_tiling.hpp"

#include "../base/error.hpp"

#include <algorithm>
#include <cmath>

namespace lrt {

namespace {

using Side = std::int64_t;
using Run = std::function<Floats(const Floats&)>;

// Where (n, y, x, 0) of an array (n, height, width, channels) is.
float* at(Floats& array, Side n, Side y, Side x) {
    return array.values.data() + ((n * array.shape[1] + y) * array.shape[2] + x) * array.shape[3];
}

const float* at(const Floats& array, Side n, Side y, Side x) { return at(const_cast<Floats&>(array), n, y, x); }

// (n, height, width, channels) from `top`, `left` on, at most `side` each way.
Floats part_of(const Floats& array, Side top, Side left, Side side) {
    const Side height = std::min(side, array.shape[1] - top), width = std::min(side, array.shape[2] - left);
    Floats part({array.shape[0], height, width, array.shape[3]});
    for (Side n = 0; n < array.shape[0]; ++n)
        for (Side y = 0; y < height; ++y)
            std::copy_n(at(array, n, top + y, left), width * array.shape[3], at(part, n, y, 0));
    return part;
}

// (n, rows, columns) to (n, columns, rows), as values alone.
std::vector<float> transposed(const Floats& array, Side rows, Side columns) {
    std::vector<float> result(array.values.size());
    for (Side n = 0; n < array.shape[0]; ++n) {
        const float* from = array.values.data() + n * rows * columns;
        float* to = result.data() + n * rows * columns;
        for (Side row = 0; row < rows; ++row)
            for (Side column = 0; column < columns; ++column) to[column * rows + row] = from[row * columns + column];
    }
    return result;
}

// The axis of channels moved from place 1 to the end, and back.
Floats channels_last(const Floats& array) {
    const Shape& shape = array.shape;
    return {{shape[0], shape[2], shape[3], shape[1]}, transposed(array, shape[1], shape[2] * shape[3])};
}

Floats channels_first(const Floats& array) {
    const Shape& shape = array.shape;
    return {{shape[0], shape[3], shape[1], shape[2]}, transposed(array, shape[1] * shape[2], shape[3])};
}

// Blends the end of `before` into the start of `piece`, from above or from the left.
void fade(const Floats& before, Floats& piece, Side width, bool from_above) {
    const std::size_t axis = from_above ? 1 : 2;
    width = std::min({before.shape[axis], piece.shape[axis], width});
    const Side height = from_above ? width : std::min(before.shape[1], piece.shape[1]);
    const Side across = from_above ? std::min(before.shape[2], piece.shape[2]) : width;
    const Side down = from_above ? before.shape[1] - width : 0, right = from_above ? 0 : before.shape[2] - width;
    for (Side n = 0; n < piece.shape[0]; ++n)
        for (Side y = 0; y < height; ++y)
            for (Side x = 0; x < across; ++x) {
                const float weight = static_cast<float>(from_above ? y : x) / static_cast<float>(width);
                const float* end = at(before, n, y + down, x + right);
                float* begin = at(piece, n, y, x);
                for (Side c = 0; c < piece.shape[3]; ++c) begin[c] = end[c] * (1 - weight) + begin[c] * weight;
            }
}

// Puts the first `keep` rows and columns of a piece to where they belong.
void place(const Floats& piece, Side keep, Side top, Side left, Floats& whole) {
    const Side height = std::min({keep, piece.shape[1], whole.shape[1] - top});
    const Side width = std::min({keep, piece.shape[2], whole.shape[2] - left});
    if (width <= 0) return;
    for (Side n = 0; n < piece.shape[0]; ++n)
        for (Side y = 0; y < height; ++y)
            std::copy_n(at(piece, n, y, 0), width * piece.shape[3], at(whole, n, top + y, left));
}

// Applies `run` to tiles of (n, height, width, channels) and joins them; `tile` pixels become `grown` pixels.
Floats tiled(const Run& run, const Floats& array, Side tile, Side grown) {
    const Side step = tile * 3 / 4, width = grown / 4, keep = grown - width;  // tiles overlap by a quarter
    Floats whole;
    std::vector<Floats> above;
    for (Side top = 0; top < array.shape[1]; top += step) {
        std::vector<Floats> row;
        for (Side left = 0; left < array.shape[2]; left += step) row.push_back(run(part_of(array, top, left, tile)));
        if (above.empty())
            whole =
                Floats({array.shape[0], array.shape[1] * grown / tile, array.shape[2] * grown / tile, row[0].shape[3]});
        for (std::size_t i = 0; i < row.size(); ++i) {
            if (!above.empty()) fade(above[i], row[i], width, true);
            if (i > 0) fade(row[i - 1], row[i], width, false);
        }
        for (std::size_t i = 0; i < row.size(); ++i)
            place(row[i], keep, top / step * keep, static_cast<Side>(i) * keep, whole);
        above = std::move(row);
    }
    return whole;
}

Floats joined(const Floats& first, const Floats& second) {
    Floats result({first.shape[0], 2 * first.shape[1], first.shape[2], first.shape[3]});
    for (std::size_t n = 0; n < static_cast<std::size_t>(first.rows()); ++n) {
        std::copy_n(first.row(n), first.stride(), result.row(n));
        std::copy_n(second.row(n), second.stride(), result.row(n) + first.stride());
    }
    return result;
}

Floats half(const Floats& array, std::size_t which) {
    Floats result({array.shape[0], array.shape[1] / 2, array.shape[2], array.shape[3]});
    for (std::size_t n = 0; n < static_cast<std::size_t>(array.rows()); ++n)
        std::copy_n(array.row(n) + which * result.stride(), result.stride(), result.row(n));
    return result;
}

}  // namespace

Decoded tiled_decode(const DecodeTile& decode, const Floats& latents, std::int64_t tile, std::int64_t factor) {
    Decoded result;
    result.nonfinite.resize(static_cast<std::size_t>(latents.rows()));
    const Run one = [&](const Floats& part) {
        const Decoded decoded = decode(channels_first(part));
        for (std::size_t i = 0; i < result.nonfinite.size(); ++i) result.nonfinite[i] += decoded.nonfinite.at(i);
        return Floats(decoded.images.shape, {decoded.images.values.begin(), decoded.images.values.end()});
    };
    const Floats pixels = tiled(one, channels_last(latents), tile, tile * factor);
    result.images = Bytes(pixels.shape);
    std::transform(pixels.values.begin(), pixels.values.end(), result.images.values.begin(),
                   [](float value) { return static_cast<std::uint8_t>(std::nearbyint(value)); });
    return result;
}

std::pair<Floats, Floats> tiled_encode(const EncodeTile& encode, const Floats& pixels, std::int64_t tile,
                                       std::int64_t factor) {
    bool samples = true;  // a VAE that does not has no logvar
    const Run one = [&](const Floats& part) {
        const auto [mean, logvar] = encode(part);
        samples = !logvar.values.empty();
        if (!samples) return channels_last(mean);
        if (mean.shape != logvar.shape)
            throw backend_error("the VAE's encoder returned a mean and a logvar of two shapes");
        return channels_last(joined(mean, logvar));
    };
    const Floats moments = channels_first(tiled(one, pixels, tile * factor, tile));
    if (!samples) return {moments, {}};
    return {half(moments, 0), half(moments, 1)};
}

}  // namespace lrt
