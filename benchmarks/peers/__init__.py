"""latentrt beside its peers: the same weights, prompt, steps and initial latents, each in an environment of its own."""
