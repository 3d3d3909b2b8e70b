"""Seeds and images to latents, and latents to images."""

from .clip_pixels import empty_pixels
from .enlarge import UPSCALERS, enlarged_latents, enlarged_pictures, enlarges_latents
from .given_images import FileRow, GivenImages, ImageInput
from .initial import initial_latents, known_images
from .noise import TorchGenerator
from .npy import is_npy, read_npy
from .opening import Picture, holds_several
from .preview import PREVIEWS, rgb_from_latents
from .steering import clip_pictures, size_of_steering, steering_pictures
from .vae import Vae

__all__ = [
    "PREVIEWS",
    "UPSCALERS",
    "FileRow",
    "GivenImages",
    "ImageInput",
    "Picture",
    "TorchGenerator",
    "Vae",
    "clip_pictures",
    "empty_pixels",
    "enlarged_latents",
    "enlarged_pictures",
    "enlarges_latents",
    "holds_several",
    "initial_latents",
    "is_npy",
    "known_images",
    "read_npy",
    "rgb_from_latents",
    "size_of_steering",
    "steering_pictures",
]
