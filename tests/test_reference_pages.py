"""The pages made of the code say what the code says; other Python versions may wrap lines of --help elsewhere."""

import pytest

from tests.reference_pages import FAMILIES, ROOT, commands, config_page, field_notes, help_of

REMEDY = "write it again with: python tests/reference_pages.py"


@pytest.fixture(scope="module")
def sections() -> dict[str, str]:
    text = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    return {part.split("\n", 1)[0]: part.split("\n", 1)[1] for part in text.split("\n## ")[1:]}


def test_the_page_has_every_command(sections):
    assert list(sections) == commands(), REMEDY


@pytest.mark.parametrize("name", commands())
def test_help_is_as_captured(name, sections):
    captured = sections[name].strip().removeprefix("```text").removesuffix("```")
    assert captured.split() == help_of(name).split(), f"docs/commands.md, {name}: {REMEDY}"


@pytest.mark.parametrize("family", FAMILIES)
def test_config_pages_are_as_the_code(family):
    written = (ROOT / "docs" / "configs" / f"{family}.md").read_text(encoding="utf-8")
    assert written == config_page(family), f"docs/configs/{family}.md: {REMEDY}"


def test_every_field_says_what_it_is():
    from unicode.train.llm_config import LlmDataConfig

    class Example:
        """A class."""

        a: int = 0
        """Below."""
        # above
        b: int = 0  # behind
        c: int = 0

    assert field_notes(Example) == {"a": "Below.", "b": "above behind", "c": ""}
    assert all(field_notes(LlmDataConfig).values())
