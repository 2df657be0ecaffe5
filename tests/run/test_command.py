"""What every command does with a user's mistakes."""

import errno

import pytest
from torch import distributed

from unicode.run.command import command, one_line


def run(error: BaseException) -> int:
    @command
    def main(argv: list[str] | None = None) -> int:
        raise error

    return main([])


def test_exit_code_and_arguments_pass_through():
    @command
    def main(argv: list[str] | None = None) -> int:
        assert argv == ["a"]
        return 7

    assert main(["a"]) == 7


MISTAKES = [ValueError("bad\n  value 3"), FileNotFoundError("no folder x"), OSError(errno.ENOSPC, "No space left", "out/model")]


@pytest.mark.parametrize("error", MISTAKES)
def test_a_users_mistake_is_one_line(error, capsys, monkeypatch):
    monkeypatch.delenv("UNICODE_TRACEBACK", raising=False)
    assert run(error) == 2
    text = capsys.readouterr().err
    assert text.startswith("error: ") and text.count("\n") == 1 and "Traceback" not in text


def test_the_file_of_a_system_error_is_named():
    assert one_line(OSError(errno.ENOSPC, "No space left on device", "out/model")) == "out/model: No space left on device"
    assert one_line(ValueError()) == "ValueError"


def test_control_characters_do_not_reach_the_terminal():
    assert one_line(ValueError("key 'a\x1b[31m\nb\ud800' is missing")) == r"key 'a\x1b[31m b\ud800' is missing"


def test_traceback_on_request(monkeypatch):
    monkeypatch.setenv("UNICODE_TRACEBACK", "1")
    with pytest.raises(ValueError, match="bad"):
        run(ValueError("bad"))


def test_interruption(capsys):
    assert run(KeyboardInterrupt()) == 130


def test_our_own_mistakes_keep_their_traceback():
    with pytest.raises(AssertionError):
        run(AssertionError("shape (1, 2)"))


def test_process_group_of_the_command_is_closed(tmp_path):
    @command
    def main(argv: list[str] | None = None) -> int:
        distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
        return 0

    assert main([]) == 0
    assert not distributed.is_initialized()
