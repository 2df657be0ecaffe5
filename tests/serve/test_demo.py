"""The demo page: what it asks a server for, and its use in a browser where gradio is installed."""

from importlib.util import find_spec
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import openai
import pytest
from demo_pages import walk
from PIL import Image

from unicode.run.demo import main
from unicode.serve import demo
from unicode.serve.demo import Client, answer, look, redraw


@pytest.fixture(scope="module")
def client(make_server, local):
    return Client(make_server(local, tokens=60)[0])


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("demo") / "picture.png"
    Image.fromarray(np.random.default_rng(2).integers(0, 255, (20, 20, 3), dtype=np.uint8)).save(path)
    return str(path)


def test_turns_keep_pictures_and_follow_what_is_taken_back(client, picture):
    def ask(words, history, turns, *files):
        parts, turns = list(answer(client, {"text": words, "files": list(files)}, history, turns))[-1]
        return [*history, {"role": "user"}, {"role": "assistant"}], turns, parts["content"]

    history, turns, parts = ask("draw", [], [], picture)
    assert [turn["role"] for turn in turns] == ["user", "assistant"]
    assert turns[0]["content"][0]["image_url"]["url"].startswith("data:image/")
    assert "".join("<image>" if not isinstance(part, str) else part for part in parts) == turns[1]["content"]
    _, longer, _ = ask("how many", history, turns)
    assert longer[:2] == turns and len(longer) == 4
    _, again, _ = ask("draw", [], longer, picture)
    assert again == turns, "a question that was taken back is asked again without what came after"


def test_drawing_completing_and_decompressing(client, picture, local):
    told = []
    (*_, drawn) = client.draw(lambda *values, **_: told.append(values), [], 3, prompt="a red circle", n=2)
    assert [line for _, line in drawn] == ["seed 3", "seed 4"] and Image.open(drawn[0][0]).size == (16, 16)
    assert told[0] == ((1, 20),) and told.count(((20, 20),)) == 2
    (*_, completed) = redraw(client, lambda *_, **__: None, picture, 1, prompt="", n=2)
    assert [line for _, line in completed] == ["the picture as its ids hold it", "seed 0", "seed 1"]
    (*_, written) = redraw(client, lambda *_, **__: None, picture)
    assert written[1][1].endswith("of 20 ids equal")


def test_the_words_of_each_cell(client, picture):
    (html,) = look(client, picture)
    shown, words = client.tokenize(picture)
    assert html.count('class="cell"') == 4 and html.count("<td>") == 4 * len(words) and shown in html
    assert all(f"<td>{one['id']}</td>" in html for one in words)


def test_refusals_are_sentences(client, picture):
    with pytest.raises(ValueError, match="choose a picture first"):
        list(look(client, None))
    with pytest.raises(openai.BadRequestError, match="the prompt is empty"):
        list(client.draw(print, [], prompt=" "))


def test_a_tab_whose_task_the_model_does_not_have_says_why(client, monkeypatch):
    gradio = MagicMock()
    monkeypatch.setattr(demo, "require", lambda *_, **__: gradio)
    for about, expected in (
        ({"tasks": ["question"]}, ["trained for text_to_image"] * 2 + ["trained for decompression"]),
        ({"why_not": "it has no image head"}, ["it has no image head"] * 4),
    ):
        gradio.reset_mock()
        monkeypatch.setattr(client, "about", {**client.about, "tasks": None, **about})
        demo.build_page(client)
        shown = [call.args[0] for call in gradio.Markdown.call_args_list][1:]
        assert len(shown) == len(expected) and all(part in line for part, line in zip(expected, shown, strict=True)), shown
        assert gradio.Interface.call_count == 4 - len(expected)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give a model with --model DIR, or a server with --server URL"),
        (["--model", "a", "--server", "b"], "give a model with --model DIR, or a server with --server URL"),
        (["--server", "http://127.0.0.1:9"], "gradio"),
    ],
)
def test_what_the_command_refuses(words, message, capsys):
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and (message in error or (find_spec("gradio") and "127.0.0.1:9" in error)), error


@pytest.mark.browser
@pytest.mark.skipif(find_spec("gradio") is None, reason="needs gradio: python -m pip install -e '.[demo]' in an environment of its own")
class TestPage:
    """The page in a browser."""

    @pytest.fixture(scope="class")
    def address(self, make_server, local):
        from unicode.serve.demo import build_page

        page = build_page(Client(make_server(local)[0]))
        _, url, _ = page.launch(server_name="127.0.0.1", share=False, quiet=True, prevent_thread_lock=True, footer_links=[])
        yield url
        page.close()

    @pytest.mark.parametrize("width", [1280, 390])
    def test_a_person_can_use_it(self, address, browser, picture, width):
        assert walk(browser, address, Path(picture), width=width, question="how many", caption="a red circle") == []
