// What on_step throws in C++ ends the draw, and is thrown again by the call; afterwards the pipeline draws.
//
//     throwing BUNDLE ONNXRUNTIME
#include <latentrt/latentrt.hpp>

#include <cstdio>
#include <stdexcept>

int main(int count, char** words) {
    if (count != 3) return 2;
    latentrt::OpenOptions options;
    options.onnxruntime = words[2];
    latentrt::Pipeline pipeline(words[1], options);
    latentrt::Request request("a circle");
    request.num_inference_steps = 3;
    request.height = request.width = 64;
    std::size_t steps = 0;
    try {
        pipeline.draw(request, [&](const latentrt::Step&) -> bool {
            if (++steps == 2) throw std::logic_error("enough");
            return true;
        });
        std::puts("nothing was thrown");
        return 1;
    } catch (const std::logic_error& error) {
        std::printf("%s after %zu steps\n", error.what(), steps);
    }
    try {
        pipeline.draw(request, [](const latentrt::Step&) -> bool { throw 5; });
        return 1;
    } catch (int number) {
        std::printf("%d\n", number);
    }
    return pipeline.draw(request).count() == 1 ? 0 : 1;
}
