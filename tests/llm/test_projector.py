"""Projectors: kinds, files of this project and of LLaVA."""

from pathlib import Path

import pytest
import torch

from unicode.llm.llava import build_projector, describe_projector, load_projector_, read_projector, save_projector


@pytest.mark.parametrize(("kind", "layers"), [("linear", 1), ("mlp2x_gelu", 2), ("mlp3x_gelu", 3)])
def test_kinds_and_round_trip(kind: str, layers: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    projector = build_projector(kind, 6, 10)
    assert sum(isinstance(layer, torch.nn.Linear) for layer in projector) == layers
    assert projector(torch.zeros(2, 5, 6)).shape == (2, 5, 10)
    assert describe_projector(projector.state_dict()) == (kind, 6, 10)
    save_projector(tmp_path, projector.state_dict())
    other = build_projector(kind, 6, 10)
    load_projector_(other, tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(projector.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("prefix", ["model.mm_projector.", "base_model.model.model.mm_projector.", "mm_projector."])
@pytest.mark.parametrize("kind", ["linear", "mlp2x_gelu"])
def test_files_of_llava_are_read(kind: str, prefix: str, tmp_path: Path) -> None:
    projector = build_projector(kind, 6, 10)
    state = {name.removeprefix("0." if kind == "linear" else ""): value.half() for name, value in projector.state_dict().items()}
    torch.save({prefix + name: value for name, value in state.items()}, tmp_path / "mm_projector.bin")
    found = read_projector(tmp_path / "mm_projector.bin")
    assert all(torch.equal(found[name], value.half().float()) for name, value in projector.state_dict().items())
    load_projector_(build_projector(kind, 6, 10), tmp_path)


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"vision.projector is 'mlp'; choose linear, mlp2x_gelu"):
        build_projector("mlp", 6, 10)
    with pytest.raises(FileNotFoundError, match=r"no projector at .*scripts/pretrain_llava.sh"):
        load_projector_(build_projector("linear", 6, 10), tmp_path)
    save_projector(tmp_path, build_projector("mlp2x_gelu", 6, 10).state_dict())
    with pytest.raises(ValueError, match=r"2 layers \(6 -> 10, 10 -> 10\), but .* ask for 1 layer \(7 -> 10\)"):
        load_projector_(build_projector("linear", 7, 10), tmp_path)
    torch.save({"weight": torch.zeros(3)}, tmp_path / "mm_projector.bin")
    with pytest.raises(ValueError, match="holds no projector"):
        read_projector(tmp_path / "mm_projector.bin")
    (tmp_path / "projector.safetensors").write_bytes(b"123")
    with pytest.raises(ValueError, match="is damaged"):
        load_projector_(build_projector("linear", 7, 10), tmp_path)
