"""The article's VAE trained by loopax and by its peers, each in its own process and environment."""
