// Prompt to picture: text encoder, denoising loop, VAE decoder.
#pragma once

#include "backends/engines.hpp"
#include "base/array.hpp"
#include "base/log.hpp"
#include "bundle/bundle.hpp"
#include "latents/vae_tiling.hpp"
#include "loop/denoising.hpp"
#include "loop/time_features.hpp"
#include "request/metadata.hpp"
#include "request/request.hpp"
#include "scheduler/plan_packs.hpp"
#include "text/tokenizer.hpp"

#include <latentrt/latentrt.h>

#include <atomic>
#include <condition_variable>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <vector>

namespace lrt {

// Finished pictures.
struct Drawn {
    std::int64_t height = 0, width = 0;
    std::vector<std::uint64_t> seeds;
    Bytes pixels;    // (images, H, W, 3); empty where only latents were asked for
    Floats latents;  // (images, C, h, w)
    std::map<std::string, double> milliseconds;
    std::vector<Texts> texts;  // of PNG files, for each image
};

class Clock;
class Pipeline;

// A finished model call; valid until its callback returns.
class Step {
  public:
    Step(Pipeline& pipeline, Denoising& denoising, bool tiling)
        : pipeline_(pipeline), denoising_(denoising), tiling_(tiling) {}

    std::size_t index() const { return denoising_.done() - 1; }
    std::size_t total() const { return denoising_.calls(); }
    std::size_t images() const { return denoising_.images(); }
    // (H, W, 3) as the model predicts it now; computed once.
    const std::uint8_t* preview(std::size_t image, latentrt_preview method, std::int64_t& height, std::int64_t& width);

  private:
    Pipeline& pipeline_;
    Denoising& denoising_;
    bool tiling_;
    std::map<latentrt_preview, Bytes> previews_;
};

// Called after each model call; returns whether to go on.
using OnStep = std::function<bool(Step&)>;

// How near the outputs come to the golden ones.
struct Verification {
    bool ids_equal = true;
    double embedding_error = 0, latents_error = 0, psnr = 0;
};

// Thread-safe.
class Pipeline {
  public:
    Pipeline(const std::string& folder, const std::string& library, Device device,
             const std::vector<std::string>& packs, Log log);

    const Manifest& manifest() const { return bundle_.manifest; }
    const std::string& backend() const { return backend_; }
    const PlanPacks& packs() const { return packs_; }

    // `plan` is that of the request; `cancelled` may be NULL.
    Drawn draw(const latentrt_request& given, const GivenPlan* plan, const std::atomic<bool>* cancelled,
               const OnStep& on_step);
    Verification verify();
    // (n, H, W, 3) of predicted clean latents (n, C, h, w).
    Bytes preview(const Floats& latents, latentrt_preview method, bool tiling);

    // Draws that are under way; see latentrt_close.
    void enter();
    void leave();
    void wait_until_left();

  private:
    Recorded recorded(const Request& request, const latentrt_request& given, std::size_t image) const;
    Conditioning encoded(const Request& request, Clock& clock);
    EncoderOutputs run_encoder(std::size_t encoder, const Ids& ids, const std::vector<std::int64_t>& layers);
    std::vector<Trajectory> trajectories(const Request& request, Clock& clock);
    std::pair<Floats, Floats> encode(const Floats& pixels, bool tiling);
    Decoded decode(const Floats& latents, bool tiling);
    Decoded decode_whole(const Floats& latents);
    std::pair<Floats, Floats> encode_whole(const Floats& pixels);
    void require_finite(const std::vector<bool>& bad) const;

    Bundle bundle_;
    Log log_;
    Engines engines_;
    TimeFeatures features_;
    std::vector<Tokenizer> tokenizers_;
    PlanPacks packs_;
    std::string backend_;
    std::mutex mutex_;
    std::condition_variable left_;
    std::size_t drawing_ = 0;
    bool closing_ = false;
};

}  // namespace lrt
