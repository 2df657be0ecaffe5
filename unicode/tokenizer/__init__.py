"""Images <-> codes <-> ids: HQ-VAE and RQ-VAE, their losses, published weights, encoding and decoding of data sets."""
