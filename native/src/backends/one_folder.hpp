// A folder with the files of a graph, for ONNX Runtime, which refuses weights that links lead to elsewhere.
#pragma once

#include <filesystem>

namespace lrt {

// The graph's own folder where neither it nor its weights are links; else a temporary one with hard links, or with
// copies where those are impossible, which is removed at the end.
class OneFolder {
  public:
    OneFolder(const std::filesystem::path& graph, const std::filesystem::path& weights);
    ~OneFolder();
    OneFolder(const OneFolder&) = delete;
    OneFolder& operator=(const OneFolder&) = delete;

    const std::filesystem::path& graph() const { return graph_; }

  private:
    std::filesystem::path graph_, temporary_;
};

}  // namespace lrt
