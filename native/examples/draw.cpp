// Draws a picture. Usage: draw BUNDLE OUT.png
#include <cstdio>
#include <fstream>
#include <latentrt/latentrt.hpp>

int main(int count, char** words) try {
    if (count != 3) return 2;
    latentrt::Pipeline pipeline(words[1]);
    latentrt::Request request("a large red star on a blue background");
    request.seeds = {1};
    const latentrt::Images images = pipeline.draw(request);
    const latentrt::View<std::uint8_t> png = images.png(0);
    std::ofstream file(words[2], std::ios::binary);
    file.write(reinterpret_cast<const char*>(png.data), std::streamsize(png.size));
    return file.flush() ? 0 : 1;
} catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
}
