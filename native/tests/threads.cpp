// Eight threads draw, look at previews, cancel and verify on one pipeline, which is closed while they draw. For thread
// and address sanitizers.
//
//     threads BUNDLE ONNXRUNTIME ROUNDS
#include <latentrt/latentrt.hpp>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>
#include <vector>

namespace {

constexpr int THREADS = 8;

struct Counts {
    std::atomic<int> drawn{0}, cancelled{0}, stopped{0}, refused{0}, other{0};
};

void draw_one(latentrt_pipeline* pipeline, latentrt_call* call, int number, Counts& counts) {
    const latentrt_text prompt{"a large red star on a blue background", LATENTRT_NUL};
    const latentrt_text wrong{"no scheduler", LATENTRT_NUL};
    const std::uint64_t seed = static_cast<std::uint64_t>(number);
    latentrt_request request;
    latentrt_request_init(&request, sizeof request);
    request.prompts = &prompt;
    request.prompts_count = 1;
    request.seeds = &seed;
    request.seeds_count = 1;
    request.num_inference_steps = 1 + number % 5;
    request.height = request.width = 64;
    request.call = call;
    if (number % 7 == 3) request.scheduler = wrong;
    const auto on_step = [](const latentrt_step* step, void* user) {
        const std::uint8_t* pixels = nullptr;
        if (latentrt_step_preview(step, 0, LATENTRT_PREVIEW_AUTO, &pixels, nullptr, nullptr, nullptr) != LATENTRT_OK)
            return 0;
        return *static_cast<const int*>(user) % 11 == 5 ? 0 : 1;
    };
    latentrt_images* images = nullptr;
    latentrt_error* error = nullptr;
    const latentrt_status status = latentrt_draw(pipeline, &request, on_step, &number, &images, &error);
    const std::uint8_t* file = nullptr;
    std::size_t length = 0;
    if (status == LATENTRT_OK && latentrt_images_png(images, 0, &file, &length, nullptr) == LATENTRT_OK)
        ++counts.drawn;
    else if (status == LATENTRT_CANCELLED && number % 11 == 5)
        ++counts.stopped;
    else if (status == LATENTRT_CANCELLED)
        ++counts.cancelled;
    else if (status == LATENTRT_SCHEDULER)
        ++counts.refused;
    else
        std::fprintf(stderr, "%d: %s\n", ++counts.other, latentrt_error_text(error));
    latentrt_error_free(error);
    latentrt_images_free(images);
}

// One pipeline, from its opening to its closing, with draws under way while it is closed.
void round(const char* bundle, const char* library, Counts& counts) {
    latentrt_open_options options;
    latentrt_open_options_init(&options, sizeof options);
    options.onnxruntime = {library, LATENTRT_NUL};
    options.threads = 1;
    latentrt_pipeline* pipeline = nullptr;
    latentrt_error* error = nullptr;
    if (latentrt_open(bundle, &options, &pipeline, &error) != LATENTRT_OK) {
        std::fprintf(stderr, "%s\n", latentrt_error_text(error));
        std::exit(1);
    }
    std::vector<latentrt_call*> calls(THREADS, nullptr);
    for (latentrt_call*& call : calls) latentrt_call_new(&call, nullptr);
    std::vector<std::thread> threads;
    for (int thread = 0; thread < THREADS; ++thread)
        threads.emplace_back([&, thread] {
            for (int i = 0; i < 6; ++i) {
                draw_one(pipeline, calls[static_cast<std::size_t>(thread)], 10 * thread + i, counts);
            }
        });
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    latentrt_cancel(calls[0]);
    latentrt_cancel(calls[1]);
    for (std::thread& thread : threads) thread.join();
    latentrt_close(pipeline);
    for (latentrt_call* call : calls) latentrt_call_free(call);
}

// Closes from one thread while another draws: the closing waits.
void close_while_drawing(const char* bundle, const char* library, Counts& counts) {
    latentrt::OpenOptions options;
    options.onnxruntime = library;
    options.threads = 1;
    auto pipeline = std::make_unique<latentrt::Pipeline>(bundle, options);
    std::atomic<bool> inside{false};
    std::thread drawing([&, raw = pipeline->get()] {
        const latentrt_text prompt{"a circle", LATENTRT_NUL};
        latentrt_request request;
        latentrt_request_init(&request, sizeof request);
        request.prompts = &prompt;
        request.prompts_count = 1;
        request.num_inference_steps = 3;
        request.height = request.width = 64;
        const auto on_step = [](const latentrt_step*, void* user) {
            *static_cast<std::atomic<bool>*>(user) = true;
            std::this_thread::sleep_for(std::chrono::milliseconds(2));
            return 1;
        };
        latentrt_images* images = nullptr;
        if (latentrt_draw(raw, &request, on_step, &inside, &images, nullptr) == LATENTRT_OK)
            ++counts.drawn;
        else
            ++counts.other;
        latentrt_images_free(images);
        inside = true;
    });
    while (!inside) std::this_thread::yield();
    pipeline.reset();
    drawing.join();
}

}  // namespace

int main(int count, char** words) {
    if (count != 4) return 2;
    Counts counts;
    for (int i = 0; i < std::atoi(words[3]); ++i) {
        round(words[1], words[2], counts);
        close_while_drawing(words[1], words[2], counts);
    }
    std::printf("drawn %d, cancelled %d, stopped %d, refused %d, other %d\n", counts.drawn.load(),
                counts.cancelled.load(), counts.stopped.load(), counts.refused.load(), counts.other.load());
    return counts.other == 0 && counts.drawn > 0 && counts.cancelled > 0 && counts.stopped > 0 && counts.refused > 0
               ? 0
               : 1;
}
