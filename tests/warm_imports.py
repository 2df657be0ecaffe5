"""Imported once by the server process of tests/warm.py: what nearly every command needs."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import torch

from unicode.generate import chat  # noqa: F401
from unicode.tokenizer import encode  # noqa: F401
from unicode.train import llm, tokenizer  # noqa: F401

torch.set_num_threads(1)
