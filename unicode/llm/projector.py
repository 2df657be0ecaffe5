"""Projectors of the LLaVA baseline: features of a vision tower (..., width) -> rows of the embedding space (..., D); and their files."""

import re
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from unicode.common.records import atomic_write
from unicode.common.stable_tensors import stable_bytes
from unicode.common.tensors import read_tensors

PROJECTOR_FILE, LLAVA_FILE = "projector.safetensors", "mm_projector.bin"
KINDS = "linear, mlp2x_gelu or another mlpNx_gelu"
_MLP = re.compile(r"mlp([1-9])x_gelu")
_LLAVA_NAME = re.compile(r"(?:.*\.)?mm_projector\.(.+)")


def build_projector(kind: str, in_width: int, out_width: int) -> nn.Sequential:
    """Return a projector: `linear`, or `mlpNx_gelu` with N layers and GELU between them; its tensors are called as LLaVA's.

    Raises:
        ValueError: an unknown kind.
    """
    match = _MLP.fullmatch(kind)
    if kind != "linear" and match is None:
        raise ValueError(f"vision.projector is '{kind}'; choose {KINDS}")
    layers: list[nn.Module] = [nn.Linear(in_width, out_width)]
    for _ in range(1, int(match[1]) if match else 1):
        layers += [nn.GELU(), nn.Linear(out_width, out_width)]
    return nn.Sequential(*layers)


def save_projector(folder: str | Path, state: dict[str, torch.Tensor]) -> Path:
    """Write the state dict of a projector to projector.safetensors in a folder, atomically, and return the path."""
    path = Path(folder) / PROJECTOR_FILE
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    with atomic_write(path, "wb") as file:
        file.write(stable_bytes(tensors, {"format": "pt"}))
    return path


def load_projector_(projector: nn.Module, path: str | Path) -> None:
    """Fill a projector from a folder or a file of one, this project's or LLaVA's.

    Raises:
        FileNotFoundError: there is none.
        ValueError: the file is damaged, or holds a projector of another kind or width.
    """
    path = find_projector(path)
    state = read_projector(path)
    expected = {name: tuple(tensor.shape) for name, tensor in projector.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if given != expected:
        reason = f"it holds {_describe(given)}, but vision.projector and the two models ask for {_describe(expected)}"
        raise ValueError(f"{path} does not fit: {reason}")
    projector.load_state_dict(state)


def find_projector(path: str | Path) -> Path:
    """Return the file of the projector that `path`, a file or a folder, means; FileNotFoundError if there is none."""
    path = Path(path)
    if path.is_file():
        return path
    for name in (PROJECTOR_FILE, LLAVA_FILE):
        if (path / name).is_file():
            return path / name
    raise FileNotFoundError(f"no projector at '{path}': {PROJECTOR_FILE} or {LLAVA_FILE} expected; scripts/pretrain_llava.sh trains one")


def read_projector(path: str | Path) -> dict[str, torch.Tensor]:
    """Return the state dict, by the names that `build_projector` gives, of a file of this project or of LLaVA.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged or holds no projector.
    """
    if Path(path).suffix == ".safetensors":
        try:
            return load_file(path)
        except Exception as error:  # safetensors has an error type of its own for damaged files
            raise ValueError(f"{path} is damaged ({error}); train or copy the projector again") from error
    return pick_projector(read_tensors(path, wanted="a projector of LLaVA"), source=str(path))


def pick_projector(tensors: dict[str, torch.Tensor], *, source: str) -> dict[str, torch.Tensor]:
    """Return the projector among tensors named in LLaVA's ways, float32; ValueError naming `source` if there is none."""
    found = {}
    for name, tensor in tensors.items() if isinstance(tensors, dict) else ():
        match = _LLAVA_NAME.fullmatch(name)
        if match:
            inner = match[1] if match[1][0].isdigit() else f"0.{match[1]}"  # a linear projector of LLaVA is no Sequential
            found[inner] = tensor.float()
    if not found:
        raise ValueError(f"{source} holds no projector; names with mm_projector in them are expected")
    return found


def describe_projector(state: dict[str, torch.Tensor]) -> tuple[str, int, int]:
    """Return kind, input width and output width of a projector's state dict."""
    weights = [state[name] for name in sorted(state, key=lambda name: int(name.split(".")[0])) if name.endswith(".weight")]
    kind = "linear" if len(weights) == 1 else f"mlp{len(weights)}x_gelu"
    return kind, weights[0].shape[1], weights[-1].shape[0]


def _describe(shapes: dict[str, tuple[int, ...]]) -> str:
    layers = [f"{shape[1]} -> {shape[0]}" for name, shape in sorted(shapes.items()) if name.endswith("weight") and len(shape) == 2]
    return f"{len(layers)} layer{'s' if len(layers) != 1 else ''} ({', '.join(layers) or 'none'})"
