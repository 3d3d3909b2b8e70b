#include "structs.hpp"

#include <cmath>

namespace lrt {

void set_defaults(latentrt_open_options& options) { options = {}; }

void set_defaults(latentrt_request& request) {
    request = {};
    request.num_images_per_prompt = 1;
    request.guidance_end = 1;
    request.strength = LATENTRT_DEFAULT;
    for (latentrt_pair* pair :
         {&request.original_size, &request.crops_coords_top_left, &request.target_size, &request.negative_original_size,
          &request.negative_crops_coords_top_left, &request.negative_target_size})
        *pair = {-1, -1};
}

void set_defaults(latentrt_verification& verification) { verification = {}; }

}  // namespace lrt

void latentrt_open_options_init(latentrt_open_options* options, size_t struct_size) { lrt::init(options, struct_size); }

void latentrt_request_init(latentrt_request* request, size_t struct_size) { lrt::init(request, struct_size); }

void latentrt_verification_init(latentrt_verification* verification, size_t struct_size) {
    lrt::init(verification, struct_size);
}
