// latentrt-draw: a prompt on the command line becomes PNG files.
#include "arguments.hpp"
#include "files.hpp"

#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <memory>

namespace {

std::string with_suffix(const std::string& file, const std::string& suffix) {
    return file.substr(0, file.size() - 4) + suffix + ".png";
}

volatile std::sig_atomic_t interrupted = 0;

// Ends the draw at its next step, so that nothing is left half-written.
void interrupt_gently() {
    struct sigaction action{};
    action.sa_handler = [](int) { interrupted = 1; };
    for (const int signal : {SIGINT, SIGTERM}) sigaction(signal, &action, nullptr);
}

// One line that is written again, on a terminal alone.
void show_progress(const latentrt::Step& step) {
    if (isatty(STDERR_FILENO) == 0) return;
    const bool last = step.index() + 1 == step.total();
    std::fprintf(stderr, "\r%zu/%zu calls%s", step.index() + 1, step.total(), last ? "\r\033[K" : "");
}

void write_preview(const latentrt::Step& step, const std::string& out) {
    const latentrt::Preview preview = step.preview(0);
    const std::string file = png(preview.pixels.data, preview.height, preview.width);
    write_file(out, file.data(), file.size());
}

void save_latents(const latentrt::Images& images, const Arguments& arguments) {
    std::vector<float> values;
    for (std::size_t i = 0; i < images.count(); ++i)
        values.insert(values.end(), images.latents(i).begin(), images.latents(i).end());
    const auto [channels, height, width] = images.latent_shape();
    const std::string file = npy({images.count(), channels, height, width}, values);
    write_file(arguments.save_latents, file.data(), file.size());
}

// A file that is removed at the end, however that comes.
struct Removed {
    std::string file;
    ~Removed() {
        if (!file.empty()) std::remove(file.c_str());
    }
};

latentrt::Plan plan_of_file(const std::string& file) {
    try {
        return latentrt::Plan(text_of_file(file));
    } catch (const latentrt::Error& error) {
        throw latentrt::Error(error.status(), file + ": " + error.what());
    }
}

int draw(latentrt::Pipeline& pipeline, Arguments& arguments) {
    latentrt::Request& request = arguments.request;
    std::vector<PictureFile> pictures;
    for (const std::string& file : arguments.images) pictures.emplace_back(file);
    for (const std::string& file : arguments.masks) pictures.emplace_back(file);
    for (std::size_t i = 0; i < pictures.size(); ++i)
        (i < arguments.images.size() ? request.images : request.masks).push_back(pictures[i].picture());
    std::unique_ptr<latentrt::Plan> plan;
    if (!arguments.plan.empty()) {
        plan = std::make_unique<latentrt::Plan>(plan_of_file(arguments.plan));
        request.plan = plan.get();
    }
    require_place(arguments.out);
    if (!arguments.save_latents.empty()) require_place(arguments.save_latents);
    const std::string preview = with_suffix(arguments.out, ".preview");
    const Removed removed{arguments.preview ? preview : ""};
    interrupt_gently();
    const latentrt::Images images = pipeline.draw(request, [&](const latentrt::Step& step) {
        show_progress(step);
        if (arguments.preview && step.index() + 1 < step.total()) write_preview(step, preview);
        return interrupted == 0;
    });
    for (std::size_t i = 0; i < images.count(); ++i) {
        const std::string file =
            images.count() == 1 ? arguments.out : with_suffix(arguments.out, "-" + std::to_string(i));
        const latentrt::View<std::uint8_t> png = images.png(i);
        write_file(file, png.data, png.size);
        std::printf("%s (seed %llu, %.2f s on %s)\n", file.c_str(), static_cast<unsigned long long>(images.seed(i)),
                    images.milliseconds("total") / 1000, pipeline.backend().c_str());
    }
    if (!arguments.save_latents.empty()) save_latents(images, arguments);
    return 0;
}

int verify(latentrt::Pipeline& pipeline) {
    const latentrt_verification found = pipeline.verify();
    std::printf(
        "ids: equal\ntext embedding: relative error %.2e, at most %.0e\nlatents: relative error %.2e, at most "
        "%.0e\nimage: PSNR %.1f dB, at least %g dB\n",
        found.embedding_error, found.embedding_tolerance, found.latents_error, found.latents_tolerance, found.psnr,
        found.psnr_floor);
    return 0;
}

int run(Arguments arguments) {
    if (arguments.help) {
        std::fputs(USAGE, stdout);
        return 0;
    }
    if (arguments.version) {
        std::puts(latentrt_version());
        return 0;
    }
    const bool verbose = arguments.verbose;
    arguments.open.log = [verbose](latentrt::LogLevel level, std::string_view text) {
        if (verbose || level == latentrt::LogLevel::warning)
            std::fprintf(stderr, "latentrt-draw: %.*s\n", static_cast<int>(text.size()), text.data());
    };
    latentrt::Pipeline pipeline(arguments.bundle, arguments.open);
    if (arguments.verify) return verify(pipeline);
    if (!arguments.schedulers) return draw(pipeline, arguments);
    for (const std::string& name : pipeline.schedulers()) std::puts(name.c_str());
    return 0;
}

}  // namespace

int main(int count, char** words) {
    try {
        return run(arguments_from(count, words));
    } catch (const UsageError& error) {
        std::fprintf(stderr, "latentrt-draw: %s; latentrt-draw --help tells more\n", error.what());
        return 2;
    } catch (const latentrt::Error& error) {
        if (interrupted != 0 && error.status() == LATENTRT_CANCELLED) {
            std::fputs("latentrt-draw: interrupted; no incomplete files were left\n", stderr);
            return 130;
        }
        std::fprintf(stderr, "latentrt-draw: %s\n", error.what());
        return 1;
    } catch (const std::exception& error) {
        std::fprintf(stderr, "latentrt-draw: %s\n", error.what());
        return 1;
    }
}
