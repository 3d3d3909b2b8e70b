// Draws once for each line of standard input and prints the milliseconds; at the end, peak memory in bytes. For
// benchmarks/speed/native.py.
//
//     draw_repeatedly BUNDLE STEPS HEIGHT WIDTH
#include <latentrt/latentrt.hpp>

#include <chrono>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <string>

namespace {

long long peak_bytes() {
    std::ifstream status("/proc/self/status");
    for (std::string line; std::getline(status, line);)
        if (line.rfind("VmHWM:", 0) == 0) return 1024 * std::atoll(line.c_str() + 6);
    return 0;
}

}  // namespace

int main(int count, char** words) {
    if (count != 5) return 2;
    latentrt::Pipeline pipeline(words[1]);
    latentrt::Request request("a large red star on a blue background");
    request.seeds = {0};
    request.num_inference_steps = std::atoi(words[2]);
    request.height = std::atoi(words[3]);
    request.width = std::atoi(words[4]);
    request.scheduler = "euler";
    for (std::string line; std::getline(std::cin, line);) {
        const auto start = std::chrono::steady_clock::now();
        const latentrt::Images images = pipeline.draw(request);
        const std::chrono::duration<double, std::milli> taken = std::chrono::steady_clock::now() - start;
        if (images.pixels(0).size == 0) return 1;
        std::cout << taken.count() << std::endl;
    }
    std::cout << peak_bytes() << std::endl;
}
