// Draws a picture from a bundle, without Python. What is not given is the golden's; when nothing is given, the picture
// is compared with the golden. See docs/embedding.md.
#include "picture.hpp"

#define STB_IMAGE_WRITE_IMPLEMENTATION
#include <stb/stb_image_write.h>

#include <iostream>
#include <limits>

namespace {

using namespace latentrt;

const char* const USAGE =
    "usage: draw BUNDLE --onnxruntime LIBRARY [-o PICTURE.png] [--device cpu|cuda] [--threads N]\n"
    "            [--plan PLAN.json] [--ids IDS.json] [--seed N] [--guidance SCALE] [--height H] [--width W]\n";

struct UsageError : Error {
    using Error::Error;
};

struct Options {
    std::string bundle;
    std::map<std::string, std::string> given;

    // Converts a number, and refuses what is left of the text or does not fit.
    template <typename T, typename Convert>
    T number(const std::string& name, T otherwise, Convert convert) const {
        const auto found = given.find(name);
        if (found == given.end()) return otherwise;
        std::size_t used = 0;
        try {
            const T value = static_cast<T>(convert(found->second, &used));
            if (used == found->second.size()) return value;
        } catch (const std::logic_error&) {  // what std::stod and its like throw
        }
        throw UsageError(name + " " + found->second + ": not a number that can be used here");
    }
    std::int64_t whole(const std::string& name, std::int64_t otherwise) const {
        return number(name, otherwise, [](const std::string& s, std::size_t* used) { return std::stoll(s, used); });
    }
    float real(const std::string& name, float otherwise) const {
        return number(name, otherwise, [](const std::string& s, std::size_t* used) { return std::stof(s, used); });
    }
    std::string text(const std::string& name, const std::string& otherwise) const {
        const auto found = given.find(name);
        return found == given.end() ? otherwise : found->second;
    }
};

Options options_from_arguments(int count, char** arguments) {
    const std::set<std::string> names{"--onnxruntime", "-o",     "--device",   "--threads", "--plan",
                                      "--ids",         "--seed", "--guidance", "--height",  "--width"};
    Options options;
    for (int i = 1; i < count; ++i) {
        const std::string word = arguments[i];
        if (names.count(word) != 0) {
            if (++i == count) throw UsageError(word + " needs a value");
            options.given[word] = arguments[i];
        } else if (options.bundle.empty() && word.rfind('-', 0) != 0) {
            options.bundle = word;
        } else {
            throw UsageError("what is " + word + "?");
        }
    }
    if (options.bundle.empty() || options.given.count("--onnxruntime") == 0)
        throw UsageError("BUNDLE and --onnxruntime are needed");
    const std::string device = options.text("--device", "cpu");
    if (device != "cpu" && device != "cuda") throw UsageError("--device " + device + ": cpu or cuda");
    return options;
}

void check_ids(const std::vector<std::vector<std::int64_t>>& ids, const TextEncoder& encoder, const Path& file) {
    bool framed = ids.size() == 2;
    for (const auto& row : ids)
        framed = framed && row.size() == std::size_t(encoder.max_length) && row.front() == encoder.bos;
    if (!framed)
        throw Error(file.string() + " must hold ids of the negative text and of the text, " +
                    std::to_string(encoder.max_length) + " each, that begin with " + std::to_string(encoder.bos));
}

std::vector<std::vector<std::int64_t>> ids_from_json(const Path& file, const Bundle& bundle) {
    return with_json(file, [&](const Json& json) {
        const auto ids = json.get<std::vector<std::vector<std::int64_t>>>();
        check_ids(ids, bundle.text_encoder, file);
        return ids;
    });
}

std::vector<std::vector<std::int64_t>> ids_from_golden(const Safetensors& golden, const Bundle& bundle) {
    const auto flat = golden.values<std::int64_t>("input_ids", "I64");
    const auto middle = flat.begin() + std::ptrdiff_t(flat.size() / 2);
    std::vector<std::vector<std::int64_t>> ids{{flat.begin(), middle}, {middle, flat.end()}};
    check_ids(ids, bundle.text_encoder, bundle.golden.file);
    return ids;
}

// Euclidean norm of the difference over that of `expected`.
double relative_error(const std::vector<float>& got, const std::vector<float>& expected) {
    if (got.size() != expected.size()) throw Error("the golden latents have another size");
    double difference = 0, norm = 0;
    for (std::size_t i = 0; i < got.size(); ++i) {
        difference += std::pow(double(got[i]) - double(expected[i]), 2);
        norm += std::pow(double(expected[i]), 2);
    }
    return std::sqrt(difference / norm);
}

// Peak signal-to-noise ratio in dB, infinite for equal pictures.
double psnr(const std::vector<std::uint8_t>& got, const std::vector<std::uint8_t>& expected) {
    if (got.size() != expected.size()) throw Error("the golden picture has another size");
    double sum = 0;
    for (std::size_t i = 0; i < got.size(); ++i) sum += std::pow(double(got[i]) - double(expected[i]), 2);
    if (sum == 0) return std::numeric_limits<double>::infinity();
    return 10 * std::log10(255.0 * 255.0 * double(got.size()) / sum);
}

// Prints both figures; whether both hold.
bool matches_golden(const Picture& picture, const Safetensors& golden, const Golden& limits) {
    const double error = relative_error(picture.latents, golden.values<float>("latents", "F32"));
    const double decibels = psnr(picture.pixels, golden.values<std::uint8_t>("image", "U8"));
    std::cout << "latents: relative error " << error << ", at most " << limits.latents_tolerance << "\n"
              << "picture: PSNR " << decibels << " dB, at least " << limits.psnr_floor << " dB\n";
    // Written so that NaN fails.
    return error <= limits.latents_tolerance && decibels >= limits.psnr_floor;
}

int run(const Options& options) {
    const Bundle bundle = open_bundle(options.bundle);
    const Golden& defaults = bundle.golden;
    const Safetensors golden(defaults.file);

    const std::string plan = options.text("--plan", ""), ids = options.text("--ids", "");
    Request request;
    request.plan = plan.empty() ? plan_from_golden(golden, bundle) : plan_from_json(plan, bundle);
    request.ids = ids.empty() ? ids_from_golden(golden, bundle) : ids_from_json(ids, bundle);
    request.seed = std::uint64_t(options.whole("--seed", std::int64_t(defaults.seed)));
    request.guidance_scale = options.real("--guidance", defaults.guidance_scale);
    request.height = options.whole("--height", defaults.height);
    request.width = options.whole("--width", defaults.width);

    const Device device{options.text("--device", "cpu") == "cuda", int(options.whole("--threads", 0))};
    const Library library(options.text("--onnxruntime", ""));
    const Picture picture = Pipeline(library, bundle, device).draw(request);

    const std::string out = options.text("-o", "");
    if (!out.empty() && !stbi_write_png(out.c_str(), int(picture.width), int(picture.height), 3, picture.pixels.data(), 0))
        throw Error(out + " cannot be written");
    for (const char* name : {"--plan", "--ids", "--seed", "--guidance", "--height", "--width"})
        if (options.given.count(name) != 0) return 0;
    if (!matches_golden(picture, golden, bundle.golden)) throw Error("the picture is not the golden one");
    return 0;
}

}  // namespace

int main(int count, char** arguments) {
    try {
        return run(options_from_arguments(count, arguments));
    } catch (const UsageError& error) {
        std::cerr << "draw: " << error.what() << "\n" << USAGE;
        return 2;
    } catch (const std::exception& error) {  // Error, Ort::Exception, std::bad_alloc
        std::cerr << "draw: " << error.what() << "\n";
        return 1;
    }
}
