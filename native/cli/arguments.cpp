#include "arguments.hpp"

#include <charconv>
#include <functional>
#include <map>

const char* const USAGE =
    R"(usage: latentrt-draw PROMPT --bundle FOLDER [-o out.png] [options]
       latentrt-draw --verify --bundle FOLDER        draw the golden picture and compare each stage
       latentrt-draw --schedulers --bundle FOLDER    names of the schedulers that the bundle has plans for

options of a call, as of `latentrt generate`:
  --negative-prompt TEXT  --prompt-2 TEXT  --negative-prompt-2 TEXT  --prompt-syntax plain|web-ui
  --long-prompt truncate|chunk  --clip-skip N
  --steps N  --scheduler NAME  --plan PLAN.json  --plans PACK
  --guidance-scale X  --guidance-rescale X  --guidance-start X  --guidance-end X
  --seed N  --rng cpu|cuda  --noise-seed-delta N  --num-images N  --height PIXELS  --width PIXELS
  --image FILE  --mask FILE (PNG, JPEG, BMP, GIF, TGA, PNM)  --strength X  --vae-tiling
  --original-size H W  --crops-coords-top-left TOP LEFT  --target-size H W, and the same with --negative-

of this program:
  -o FILE.png             several pictures become FILE-0.png, FILE-1.png, …
  --save-latents FILE.npy
  -- PROMPT               a prompt that begins with dashes
  --version
  --preview               keep FILE.preview.png up to date while the picture is drawn
  --onnxruntime LIBRARY   else LATENTRT_ONNXRUNTIME, else libonnxruntime.so.1
  --provider cpu|cuda|tensorrt|nv_tensorrt_rtx  --device N  --threads N  --provider-option KEY=VALUE
  --verbose
)";

namespace {

template <typename T>
T number(const std::string& flag, const std::string& word) {
    T value{};
    const char* end = word.data() + word.size();
    const auto [rest, fault] = std::from_chars(word.data(), end, value);
    if (fault != std::errc() || rest != end)
        throw UsageError(flag + " " + word + ": not a number that can be used here");
    return value;
}

// Seeds are those of PyTorch: from -2**63 to 2**64 - 1.
std::uint64_t seed(const std::string& flag, const std::string& word) {
    if (word.rfind('-', 0) == 0) return static_cast<std::uint64_t>(number<std::int64_t>(flag, word));
    return number<std::uint64_t>(flag, word);
}

int choice(const std::string& flag, const std::string& word, const std::vector<std::string>& allowed) {
    std::string all;
    for (std::size_t i = 0; i < allowed.size(); ++i) {
        if (word == allowed[i]) return static_cast<int>(i);
        all += (i == 0 ? "" : ", ") + allowed[i];
    }
    throw UsageError(flag + " " + word + ": expected one of " + all);
}

// The words behind a flag.
class Words {
  public:
    // --flag=value counts as two words.
    Words(int count, const char* const* words) {
        for (int i = 1; i < count; ++i) {
            const std::string word = words[i];
            const std::size_t equals = word.rfind("--", 0) == 0 ? word.find('=') : std::string::npos;
            words_.push_back(word.substr(0, equals));
            if (equals != std::string::npos) words_.push_back(word.substr(equals + 1));
        }
    }

    bool any() const { return at_ < words_.size(); }
    std::string next(const std::string& flag) {
        if (!any()) throw UsageError(flag + " needs a value");
        return words_[at_++];
    }
    std::string next() { return words_[at_++]; }

  private:
    std::vector<std::string> words_;
    std::size_t at_ = 0;
};

using Flags = std::map<std::string, std::function<void(const std::string& flag, Words& words)>>;

template <typename T>
auto number_into(std::optional<T>& to) {
    return [&to](const std::string& flag, Words& words) { to = number<T>(flag, words.next(flag)); };
}

template <typename T>
auto number_into(T& to) {
    return [&to](const std::string& flag, Words& words) { to = number<T>(flag, words.next(flag)); };
}

auto text_into(std::string& to) {
    return [&to](const std::string& flag, Words& words) { to = words.next(flag); };
}

auto text_added(std::vector<std::string>& to) {
    return [&to](const std::string& flag, Words& words) { to.push_back(words.next(flag)); };
}

auto set(bool& to) {
    return [&to](const std::string&, Words&) { to = true; };
}

auto pair_into(std::optional<latentrt_pair>& to) {
    return [&to](const std::string& flag, Words& words) {
        const auto first = number<std::int32_t>(flag, words.next(flag));
        to = latentrt_pair{first, number<std::int32_t>(flag, words.next(flag))};
        if (to->first < 0 || to->second < 0) throw UsageError(flag + ": expected a pair of integers >= 0");
    };
}

Flags flags_of_call(latentrt::Request& request) {
    return {
        {"--negative-prompt", text_added(request.negative_prompts)},
        {"--prompt-2", text_added(request.prompts_2)},
        {"--negative-prompt-2", text_added(request.negative_prompts_2)},
        {"--prompt-syntax",
         [&](const std::string& flag, Words& words) {
             request.prompt_syntax =
                 static_cast<latentrt_prompt_syntax>(choice(flag, words.next(flag), {"plain", "web-ui"}));
         }},
        {"--long-prompt",
         [&](const std::string& flag, Words& words) {
             request.long_prompt =
                 static_cast<latentrt_long_prompt>(choice(flag, words.next(flag), {"truncate", "chunk"}));
         }},
        {"--rng",
         [&](const std::string& flag, Words& words) {
             request.rng = static_cast<latentrt_rng>(choice(flag, words.next(flag), {"cpu", "cuda"}));
         }},
        {"--clip-skip", number_into(request.clip_skip)},
        {"--steps", number_into(request.num_inference_steps)},
        {"--scheduler", [&](const std::string& flag, Words& words) { request.scheduler = words.next(flag); }},
        {"--guidance-scale", [&](const std::string& flag,
                                 Words& words) { request.guidance_scales = {number<double>(flag, words.next(flag))}; }},
        {"--guidance-rescale", number_into(request.guidance_rescale)},
        {"--guidance-start", number_into(request.guidance_start)},
        {"--guidance-end", number_into(request.guidance_end)},
        {"--seed", [&](const std::string& flag, Words& words) { request.seeds = {seed(flag, words.next(flag))}; }},
        {"--noise-seed-delta", number_into(request.noise_seed_delta)},
        {"--num-images", number_into(request.num_images_per_prompt)},
        {"--height", number_into(request.height)},
        {"--width", number_into(request.width)},
        {"--strength", number_into(request.strength)},
        {"--vae-tiling", set(request.vae_tiling)},
        {"--original-size", pair_into(request.original_size)},
        {"--crops-coords-top-left", pair_into(request.crops_coords_top_left)},
        {"--target-size", pair_into(request.target_size)},
        {"--negative-original-size", pair_into(request.negative_original_size)},
        {"--negative-crops-coords-top-left", pair_into(request.negative_crops_coords_top_left)},
        {"--negative-target-size", pair_into(request.negative_target_size)},
    };
}

Flags flags_of_program(Arguments& arguments) {
    return {
        {"--bundle", text_into(arguments.bundle)},
        {"-o", text_into(arguments.out)},
        {"--out", text_into(arguments.out)},
        {"--plan", text_into(arguments.plan)},
        {"--plans", text_added(arguments.open.plans)},
        {"--image", text_added(arguments.images)},
        {"--mask", text_added(arguments.masks)},
        {"--save-latents", text_into(arguments.save_latents)},
        {"--onnxruntime", text_into(arguments.open.onnxruntime)},
        {"--provider", text_into(arguments.open.provider)},
        {"--device", number_into(arguments.open.device)},
        {"--threads", number_into(arguments.open.threads)},
        {"--provider-option",
         [&](const std::string& flag, Words& words) {
             const std::string word = words.next(flag);
             const std::size_t equals = word.find('=');
             if (equals == std::string::npos) throw UsageError(flag + " " + word + ": expected KEY=VALUE");
             arguments.open.provider_options.emplace_back(word.substr(0, equals), word.substr(equals + 1));
         }},
        {"--preview", set(arguments.preview)},
        {"--verify", set(arguments.verify)},
        {"--schedulers", set(arguments.schedulers)},
        {"--verbose", set(arguments.verbose)},
        {"--version", set(arguments.version)},
        {"--help", set(arguments.help)},
        {"-h", set(arguments.help)},
    };
}

void check(const Arguments& arguments) {
    if (arguments.help || arguments.version) return;
    if (arguments.bundle.empty()) throw UsageError("--bundle is needed: the folder that `latentrt export` wrote");
    if (arguments.prompt + arguments.verify + arguments.schedulers != 1)
        throw UsageError("pass either a prompt, --verify or --schedulers");
    const std::string& out = arguments.out;
    if (out.size() < 5 || out.substr(out.size() - 4) != ".png") throw UsageError("-o " + out + ": it must end in .png");
    if (arguments.images.size() > 1 || arguments.masks.size() > 1)
        throw UsageError("--image and --mask are given once: one picture for all images");
}

}  // namespace

Arguments arguments_from(int count, const char* const* words) {
    Arguments arguments;
    Flags flags = flags_of_call(arguments.request);
    flags.merge(flags_of_program(arguments));
    for (Words rest(count, words); rest.any();) {
        const std::string word = rest.next();
        const auto found = flags.find(word);
        if (found != flags.end()) {
            found->second(word, rest);
        } else if (!arguments.prompt && (word == "--" || word.rfind("--", 0) != 0)) {
            arguments.request.prompts = {word == "--" ? rest.next(word) : word};
            arguments.prompt = true;
        } else {
            throw UsageError("unknown argument " + word);
        }
    }
    check(arguments);
    return arguments;
}
