"""Seeds and images to latents, and latents to images."""
