"""The pages made from the code agree with it; other Python versions may wrap lines of --help elsewhere."""

from dataclasses import dataclass
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SPEC = spec_from_file_location("reference_pages", ROOT / "docs" / "reference_pages.py")
assert SPEC is not None and SPEC.loader is not None
code = module_from_spec(SPEC)
SPEC.loader.exec_module(code)
REMEDY = "write it again with: python docs/reference_pages.py"


@pytest.fixture(scope="module")
def sections() -> dict[str, str]:
    text = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    return {part.split("\n", 1)[0]: part.split("\n", 1)[1] for part in text.split("\n## ")[1:]}


def test_the_page_has_every_command(sections):
    assert list(sections) == code.commands(), REMEDY


@pytest.mark.parametrize("name", code.commands())
def test_help_is_as_captured(name, sections):
    captured = sections[name].strip().removeprefix("```text").removesuffix("```")
    assert captured.split() == code.help_of(name).split(), f"docs/commands.md, {name}: {REMEDY}"


@pytest.mark.parametrize("family", code.FAMILIES)
def test_config_pages_are_as_the_code(family):
    written = (ROOT / "docs" / "configs" / f"{family}.md").read_text(encoding="utf-8")
    assert written == code.config_page(family), f"docs/configs/{family}.md: {REMEDY}"


def test_every_field_says_what_it_is():
    from unicode.train.config import LlmDataConfig

    @dataclass
    class Example:
        """A class."""

        a: int = 0
        """Below."""
        # above
        b: int = 0  # behind
        c: int = 0

    assert code.field_notes(Example) == {"a": "Below.", "b": "above behind", "c": ""}
    assert all(code.field_notes(LlmDataConfig).values())
