"""Training of tokenizers and language models: configs, data order, losses, loops and metrics."""
