"""Images to codes and back: HQ-VAE and RQ-VAE, what they are trained against, and other people's weights."""
