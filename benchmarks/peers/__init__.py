"""latentrt compared with other libraries: same weights, prompt and initial latents, each in its own environment."""
