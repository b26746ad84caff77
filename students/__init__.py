"""One-step generators: (observation, latent) to an action chunk."""
