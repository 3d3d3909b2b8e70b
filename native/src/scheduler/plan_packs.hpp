// Files with the plans of many schedulers, numbers of steps and starts. engines/README.md specifies them.
#pragma once

#include "plan.hpp"

#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace lrt {

class PlanPacks {
  public:
    PlanPacks();
    ~PlanPacks();
    PlanPacks(PlanPacks&&) noexcept;
    PlanPacks& operator=(PlanPacks&&) noexcept;

    // Reads a pack; throws for a damaged one, and for one of another model. Packs that were added earlier are asked first.
    void add(const std::filesystem::path& file, const std::string& prediction_type);

    // Names that plans are found under, those of the first pack first.
    const std::vector<std::string>& names() const;

    // The plan of a scheduler, "" for the checkpoint's own. Throws where there is none, with the names, the steps and
    // the command that writes it. `strength` is nothing for plans that begin from noise.
    Plan find(const std::string& scheduler, std::int64_t steps, std::optional<double> strength) const;

  private:
    struct Content;
    std::unique_ptr<Content> content_;
};

}  // namespace lrt
