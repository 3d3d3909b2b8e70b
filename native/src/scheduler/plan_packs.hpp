// Files with the plans of many schedulers, numbers of steps and starts. engines/README.md specifies them.
#pragma once

#include "../base/json.hpp"
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

    // Reads a pack; throws for a damaged one, and for one of another model, whose scheduler_config.json is `config`.
    // Packs that were added earlier are asked first.
    void add(const std::filesystem::path& file, const std::string& prediction_type,
             const Json& config = Json::object());

    // Names that plans are found under, those of the first pack first; "" is the checkpoint's own. Besides them, names
    // of web UIs are found in upper and lower case, such as "DPM++ 2M Karras", where a pack has the same scheduler.
    const std::vector<std::string>& names() const;

    // The plan of a scheduler, "" for the checkpoint's own. Throws where there is none, with the names, the steps and
    // the command that writes it. `strength` is nothing for plans that begin from noise; that inpainting does so at
    // strength 1 is the caller's to know.
    //
    // `distilled_image` is for an image without a mask and a model that was distilled with guidance (`time` has
    // `guidance_embedding`): LCM then places all its steps within the part that the strength leaves, as in diffusers,
    // instead of leaving out some. For other schedulers it changes nothing.
    Plan find(const std::string& scheduler, std::int64_t steps, std::optional<double> strength,
              bool distilled_image = false) const;

  private:
    struct Content;
    std::unique_ptr<Content> content_;
};

}  // namespace lrt
