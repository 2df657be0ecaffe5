"""Ids and captions -> conversations that an LLM can be trained on, and lists of images that a tokenizer can be trained on."""
