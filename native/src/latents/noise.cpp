#include "noise.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <optional>
#include <random>

namespace lrt {

namespace {

constexpr std::size_t BLOCK = 16;
constexpr float TAU = 6.283185307179586f;

// PyTorch's CPU generator: MT19937, and Box-Muller in blocks of 16 or value by value.
class Twister {
  public:
    // PyTorch uses the low 32 bits of a seed.
    explicit Twister(std::uint64_t seed) : bits_(static_cast<std::uint32_t>(seed)) {}

    void fill(float* values, std::size_t count) {
        if (count < BLOCK) {
            for (std::size_t i = 0; i < count; ++i) values[i] = static_cast<float>(single());
            return;
        }
        for (std::size_t i = 0; i < count; ++i) values[i] = uniform();
        for (std::size_t i = 0; i + BLOCK <= count; i += BLOCK) box_muller(values + i);
        if (count % BLOCK != 0) {  // the last 16 values are drawn anew as a block
            float* tail = values + count - BLOCK;
            for (std::size_t i = 0; i < BLOCK; ++i) tail[i] = uniform();
            box_muller(tail);
        }
    }

  private:
    // Uniform in [0, 1): the low 24 bits of each 32, as many as float32 holds.
    float uniform() { return static_cast<float>(bits_() & 0xFFFFFFu) * 0x1p-24f; }

    // Uniform in [0, 1): the low 53 bits of two draws.
    double uniform53() {
        const std::uint64_t high = bits_(), low = bits_();
        return static_cast<double>((high << 32 | low) & ((std::uint64_t{1} << 53) - 1)) * 0x1p-53;
    }

    // Uniform values to normal ones: the first 8 of a block set the radius, the last 8 the angle. Float32 throughout,
    // as PyTorch: double would be nearer to the truth and farther from PyTorch.
    static void box_muller(float* block) {
        for (std::size_t i = 0; i < BLOCK / 2; ++i) {
            const float radius = std::sqrt(-2.0f * std::log(1.0f - block[i]));
            const float angle = TAU * block[i + BLOCK / 2];
            block[i] = radius * std::cos(angle);
            block[i + BLOCK / 2] = radius * std::sin(angle);
        }
    }

    // Box-Muller gives two values; the second one is kept for the next call, even across tensors.
    double single() {
        if (spare_) {
            const double value = *spare_;
            spare_.reset();
            return value;
        }
        const double angle = 2 * 3.141592653589793 * uniform53(), size = uniform53();
        const double radius = std::sqrt(-2 * std::log1p(-size));
        spare_ = radius * std::sin(angle);
        return radius * std::cos(angle);
    }

    std::mt19937 bits_;
    std::optional<double> spare_;
};

// PyTorch's CUDA generator: Philox4x32-10 (Salmon et al. 2011), one sequence for each thread of the grid, and cuRAND's
// Box-Muller, four values from four random words.
class Philox {
  public:
    explicit Philox(std::uint64_t seed)
        : key_{static_cast<std::uint32_t>(seed), static_cast<std::uint32_t>(seed >> 32)} {}

    // A grid of T threads fills T values with the first of each thread's four values, the next T with the second, …;
    // small tensors have a thread for each value, and three of four values are not used.
    void fill(float* values, std::size_t count) {
        if (count == 0) return;
        const std::size_t threads = std::min((count + CUDA_BLOCK - 1) / CUDA_BLOCK * CUDA_BLOCK, MAX_THREADS);
        const std::size_t rounds = (count - 1) / (4 * threads) + 1;
        for (std::size_t round = 0; round < rounds; ++round) {
            for (std::size_t thread = 0; thread < threads; ++thread) {
                const std::size_t first = round * 4 * threads + thread;
                if (first >= count) break;
                const std::array<float, 4> four = normal(words(drawn_ + round, thread));
                for (std::size_t i = 0; i < 4 && first + i * threads < count; ++i)
                    values[first + i * threads] = four[i];
            }
        }
        drawn_ += rounds;
    }

  private:
    using Words = std::array<std::uint32_t, 4>;

    static constexpr std::size_t CUDA_BLOCK = 256;          // threads of a block in PyTorch's random kernels
    static constexpr std::size_t MAX_THREADS = 132 * 2048;  // of an H100

    Words words(std::uint64_t block, std::uint64_t thread) const {
        Words w{static_cast<std::uint32_t>(block), static_cast<std::uint32_t>(block >> 32),
                static_cast<std::uint32_t>(thread), 0};
        std::uint32_t k0 = key_[0], k1 = key_[1];
        for (int round = 0; round < 10; ++round) {
            const std::uint64_t first = std::uint64_t{w[0]} * 0xD2511F53, second = std::uint64_t{w[2]} * 0xCD9E8D57;
            w = {static_cast<std::uint32_t>(second >> 32) ^ w[1] ^ k0, static_cast<std::uint32_t>(second),
                 static_cast<std::uint32_t>(first >> 32) ^ w[3] ^ k1, static_cast<std::uint32_t>(first)};
            k0 += 0x9E3779B9;
            k1 += 0xBB67AE85;
        }
        return w;
    }

    static std::array<float, 4> normal(const Words& w) {
        constexpr float unit = 0x1p-32f;
        std::array<float, 4> values{};
        for (std::size_t i = 0; i < 4; i += 2) {
            const float u = static_cast<float>(w[i]) * unit + unit / 2;
            const float angle = static_cast<float>(w[i + 1]) * (unit * TAU) + unit * 3.141592653589793f;
            const float radius = std::sqrt(-2.0f * std::log(u));
            values[i] = radius * std::sin(angle);
            values[i + 1] = radius * std::cos(angle);
        }
        return values;
    }

    std::array<std::uint32_t, 2> key_;
    std::uint64_t drawn_ = 0;  // blocks of four words that each thread has used
};

}  // namespace

struct TorchGenerator::Source {
    explicit Source(std::uint64_t seed, latentrt_rng rng) {
        if (rng == LATENTRT_RNG_CUDA)
            philox.emplace(seed);
        else
            twister.emplace(seed);
    }

    std::optional<Twister> twister;
    std::optional<Philox> philox;
};

TorchGenerator::TorchGenerator(std::uint64_t seed, latentrt_rng rng) : source_(std::make_unique<Source>(seed, rng)) {}
TorchGenerator::~TorchGenerator() = default;
TorchGenerator::TorchGenerator(TorchGenerator&&) noexcept = default;

std::vector<float> TorchGenerator::randn(std::size_t count) {
    std::vector<float> values(count);
    if (source_->twister)
        source_->twister->fill(values.data(), count);
    else
        source_->philox->fill(values.data(), count);
    return values;
}

}  // namespace lrt
