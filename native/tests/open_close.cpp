// Opens, draws and closes many times, and prints resident memory in KiB after each tenth of the rounds.
//
//     open_close BUNDLE ONNXRUNTIME ROUNDS
#include <latentrt/latentrt.hpp>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <string>

namespace {

long resident_kib() {
    std::ifstream status("/proc/self/status");
    for (std::string line; std::getline(status, line);)
        if (line.rfind("VmRSS:", 0) == 0) return std::atol(line.c_str() + 6);
    return -1;
}

}  // namespace

int main(int count, char** words) {
    if (count != 4) return 2;
    const int rounds = std::atoi(words[3]);
    latentrt::OpenOptions options;
    options.onnxruntime = words[2];
    for (int i = 1; i <= rounds; ++i) {
        latentrt::Pipeline pipeline(words[1], options);
        latentrt::Request request("a small green circle");
        request.num_inference_steps = 1;
        request.height = request.width = 64;
        request.seeds = {1};
        if (pipeline.draw(request).png(0).size == 0) return 1;
        if (i % (rounds / 10) != 0) continue;
        std::printf("%d %ld\n", i, resident_kib());
        std::fflush(stdout);
    }
    return 0;
}
