// Draws a picture. Usage: draw BUNDLE OUT.png
#include <latentrt/latentrt.hpp>
#include <fstream>

int main(int, char** words) {
    latentrt::Pipeline pipeline(words[1]);
    latentrt::Request request("a large red star on a blue background");
    request.seeds = {1};
    const latentrt::Images images = pipeline.draw(request);
    const latentrt::View<std::uint8_t> png = images.png(0);
    std::ofstream(words[2], std::ios::binary).write(reinterpret_cast<const char*>(png.data), std::streamsize(png.size));
}
