"""Files of lines: what a killed process left behind."""

from unicode.common.files import open_append


def test_appending_cuts_half_a_line_off(tmp_path):
    path = tmp_path / "deep" / "lines.jsonl"
    with open_append(path) as file:
        file.write("one\n")
    with open(path, "a", encoding="utf-8") as file:
        file.write("half of t")
    with open_append(path) as file:
        file.write("two\n")
    assert path.read_text(encoding="utf-8") == "one\ntwo\n"


def test_appending_to_a_file_that_is_half_a_line(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_text("half", encoding="utf-8")
    with open_append(path) as file:
        file.write("whole\n")
    assert path.read_text(encoding="utf-8") == "whole\n"
