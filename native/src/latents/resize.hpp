// Pictures of 8 bits to other sizes and to floats, as Pillow and runtime/latents/resize.py do it, to the bit.
#pragma once

#include "../base/array.hpp"

namespace lrt {

// (H, W, 1 or 4) to (H, W, 3); alpha is dropped.
Bytes rgb_from(Bytes picture);

// (H, W, 3 or 4) to (H, W, 1) by ITU-R 601-2; alpha is dropped.
Bytes grey_from(Bytes picture);

// (H, W, 1, 3 or 4) to (height, width, …) by Lanczos. Colours with alpha are multiplied with it in between. Throws
// where what lies between the two passes is far larger than both pictures.
Bytes resized(Bytes picture, std::int64_t height, std::int64_t width);

// A picture resized to (1, height, width, 3) in [-1, 1].
Floats image_from(Bytes picture, std::int64_t height, std::int64_t width);

// A mask resized to (1, 1, height, width) of 0 and 1. It becomes grey after resizing, as in diffusers.
Floats mask_from(Bytes picture, std::int64_t height, std::int64_t width);

}  // namespace lrt
