"""Configs: defaults, a file, overrides; whatever does not fit is named."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from unicode.common.config import load_config, save_config


@dataclass
class Inner:
    """A group."""

    width: int = 3
    words: list[str] = field(default_factory=lambda: ["a"])

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError(f"inner.width {self.width} must be positive")


@dataclass
class Outer:
    """A config."""

    name: str = "x"
    inner: Inner = field(default_factory=Inner)


def test_file_then_overrides(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("inner:\n  width: 5\n")
    config = load_config(Outer, tmp_path / "c.yaml", ["name=y", "inner.words=[b, c]"])
    assert config == Outer("y", Inner(5, ["b", "c"]))
    assert load_config(Outer, None, ["name="]).name == ""
    save_config(config, tmp_path / "again.yaml")
    assert load_config(Outer, tmp_path / "again.yaml") == config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("inner.widht=3", "unknown config key 'inner.widht'; did you mean 'inner.width'"),
        ("inner.width=wide", "'wide' .* could not be converted .*; inner.width takes a whole number, for example inner.width=[0-9]"),
        ("inner.words=3", r"inner.words takes a list, for example inner.words=\[a,b\]"),
        ("inner=3", "^inner=3: .*value: 3$"),
        ("inner.width=0", "must be positive"),
        ("name", "not an override"),
    ],
)
def test_what_does_not_fit_is_named(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_config(Outer, None, [override])


def test_a_file_extends_another(tmp_path: Path) -> None:
    (tmp_path / "family").mkdir()
    (tmp_path / "base.yaml").write_text("name: base\ninner:\n  width: 5\n  words: [x, y]\n")
    (tmp_path / "family" / "middle.yaml").write_text("extends: ../base.yaml\nname: middle\n")
    (tmp_path / "family" / "leaf.yaml").write_text("extends: middle.yaml\ninner:\n  words: [z]\n")
    config = load_config(Outer, tmp_path / "family" / "leaf.yaml", ["inner.width=6"])
    assert config == Outer("middle", Inner(6, ["z"]))
    save_config(config, tmp_path / "resolved.yaml")
    assert "extends" not in (tmp_path / "resolved.yaml").read_text()


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("nmae: x", r"base.yaml: unknown config key 'nmae'; did you mean 'name'"),
        ("extends: leaf.yaml", r"base.yaml extends leaf.yaml, which leads back to itself"),
        ("extends: none.yaml", r"no config file .*none.yaml, which .*base.yaml extends"),
        ("- a", r"base.yaml holds a list"),
    ],
)
def test_errors_name_the_file_of_the_chain_that_is_at_fault(tmp_path: Path, base: str, message: str) -> None:
    (tmp_path / "base.yaml").write_text(base)
    (tmp_path / "leaf.yaml").write_text("extends: base.yaml\n")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_config(Outer, tmp_path / "leaf.yaml")


def test_missing_and_malformed_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="configs/"):
        load_config(Outer, tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(ValueError, match="not valid YAML"):
        load_config(Outer, tmp_path / "bad.yaml")


def test_an_override_that_is_no_yaml_is_a_text():
    assert load_config(Outer, None, ["name={split}/*.tar"]).name == "{split}/*.tar"
    with pytest.raises(ValueError, match=r"inner\.words takes a list"):
        load_config(Outer, None, ["inner.words=[a"])
