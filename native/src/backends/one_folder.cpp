#include "one_folder.hpp"

#include "../base/error.hpp"

#include <cstdlib>
#include <string>

namespace lrt {

namespace fs = std::filesystem;

OneFolder::OneFolder(const fs::path& graph, const fs::path& weights) : graph_(graph) {
    std::error_code error;
    if (!fs::is_symlink(graph, error) && !fs::is_symlink(weights, error)) return;
    std::string pattern = (fs::temp_directory_path() / "latentrt-XXXXXX").string();
    if (mkdtemp(pattern.data()) == nullptr)
        throw bundle_error(pattern + " cannot be made, which links in a bundle need");
    temporary_ = pattern;
    for (const fs::path& file : {graph, weights}) {
        const fs::path source = fs::canonical(file, error);
        if (error) continue;  // a graph without weights of its own
        const fs::path target = temporary_ / file.filename();
        fs::create_hard_link(source, target, error);
        if (error) fs::copy_file(source, target, error);  // another file system
        if (error) {
            const std::string reason = error.message();
            fs::remove_all(temporary_, error);
            throw bundle_error(file.string() + " is a link that cannot be copied: " + reason);
        }
    }
    graph_ = temporary_ / graph.filename();
}

OneFolder::~OneFolder() {
    std::error_code ignored;
    if (!temporary_.empty()) fs::remove_all(temporary_, ignored);
}

}  // namespace lrt
