"""A page for the browser: a server of `unicode.run.serve` -> talk about pictures, drawn and completed ones, the words of a picture."""

import base64
import hashlib
from collections.abc import Callable, Iterator
from functools import partial, wraps
from importlib import resources
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jinja2

from unicode.annotations.records import IMAGE_TAG
from unicode.annotations.templates import DECOMPRESSION, TEXT_TO_IMAGE
from unicode.common.extras import require

openai = require("openai", extra="demo")
AT_A_TIME, NEIGHBOURS = 4, 6
Pictures = list[tuple[str, str]]  # Files, with a line about each
TEMPLATE = jinja2.Environment(autoescape=True).from_string(resources.files(__package__).joinpath("demo.html").read_text("utf-8"))


class Client(openai.OpenAI):  # type: ignore[misc, name-defined]
    """One server. Raises ValueError: it does not answer. Its methods raise openai.APIError: it refuses what is asked."""

    def __init__(self, url: str, *, key: str = "") -> None:
        super().__init__(base_url=f"{url.rstrip('/').removesuffix('/v1')}/v1", api_key=key or "none", max_retries=0)
        self._folder = TemporaryDirectory()
        try:
            self.about: Any = self.get("/models", cast_to=object)["data"][0]
        except openai.APIError as error:
            raise ValueError(f"no server at {self.base_url}: {reason(error)}") from error

    def ask(self, path: str, **values: Any) -> Any:
        """Return the JSON that a route gives, or with `stream` an iterator over its events."""
        return self.post(path, body=values, cast_to=object, stream=values.get("stream", False), stream_cls=openai.Stream[object])

    def tokenize(self, path: str | None) -> tuple[str, list[dict[str, Any]]]:
        """Return an image file as its ids hold it, as base64, and these ids with their words. ValueError: there is no file."""
        if not path:
            raise ValueError("choose a picture first")
        words = self.ask("/tokenize_image", url=data_url(path), neighbours=NEIGHBOURS)["words"]
        return self.ask("/decode_ids", ids=[one["id"] for one in words])["b64_json"], words

    def draw(self, tell: Callable[..., object], before: Pictures, seed: float = 0, **values: Any) -> Iterator[Pictures]:
        """Yield `before` and the pictures that are drawn so far; `tell`: called with the share of the work that is done."""
        drawn: dict[int, tuple[str, str]] = {}
        for event in self.ask("/images/generations", stream=True, seed=int(seed), **values):
            if "of" in event:
                tell((event["ids"], event["of"]), unit="ids")
                continue
            same = [one == other for one, other in zip(values.get("compressed", ()), event["ids"], strict=False)]
            line = f"written out: {sum(same)} of {len(same)} ids equal" if same else f"seed {int(seed) + event['index']}"
            drawn[event["index"]] = self.keep(event["b64_json"]), line
            yield [*before, *(drawn[number] for number in sorted(drawn))]

    def keep(self, content: str) -> str:
        """Write a PNG that is base64 or a data URL into a file, once, and return its path."""
        file = Path(self._folder.name) / f"{hashlib.sha256(content.encode()).hexdigest()}.png"
        if not file.exists():
            file.write_bytes(base64.b64decode(content.rpartition(",")[2]))
        return str(file)


def reason(error: Exception) -> str:
    """Return an error as a sentence, the server's own where it gave one."""
    body = getattr(error, "body", None)
    return str(body["message"] if isinstance(body, dict) and "message" in body else error)


def data_url(path: str) -> str:
    """Return an image file as a data URL; the server finds out its format."""
    return f"data:image/any;base64,{base64.b64encode(Path(path).read_bytes()).decode()}"


def answer(client: Client, message: dict[str, Any], history: list[Any], turns: list[Any]) -> Iterator[tuple[Any, list[Any]]]:
    """Answer a message {"text", "files"}; yields the answer so far for the reader, and the conversation with its pictures as ids.

    `history`: the conversation that the reader sees; what was taken back there leaves `turns` too.
    """
    turns = turns[: 2 * sum(one["role"] == "assistant" for one in history)]
    images = [{"type": "image_url", "image_url": {"url": data_url(path)}} for path in message["files"]]
    turns = [*turns, {"role": "user", "content": [*images, {"type": "text", "text": message["text"]}]}]
    said: dict[str, Any] = {"role": "assistant", "content": "", "images": []}
    for event in client.ask("/chat/completions", messages=turns, stream=True):
        delta = event["choices"][0]["delta"]
        said = {**said, **{name: said[name] + delta.get(name, type(said[name])()) for name in ("content", "images")}}
        first, *words = said["content"].split(IMAGE_TAG)
        drawn = [{"path": client.keep(one["image_url"]["url"])} for one in said["images"]]
        yield {"content": [first, *(part for pair in zip(drawn, words, strict=True) for part in pair)]}, [*turns, said]


def redraw(client: Client, tell: Callable[..., object], path: str | None, rows: int = 0, **values: Any) -> Iterator[Pictures]:
    """Keep the first `rows` of cells of an image file and draw the others; with 0 the model reads it compressed and writes it out."""
    shown, words = client.tokenize(path)
    ids = [one["id"] for one in words]
    kept: dict[str, Any] = {"given": ids[: rows * client.about["grid"][1] * client.about["cell_length"]]} if rows else {"compressed": ids}
    yield from client.draw(tell, [(client.keep(shown), "the picture as its ids hold it")], **kept, **values)


def look(client: Client, path: str | None) -> Iterator[str]:
    """Yield HTML: an image file as its ids hold it, and for each coarse cell, where one points at it, its ids, words and nearest rows."""
    (shown, words), length = client.tokenize(path), client.about["cell_length"]
    cells = [words[start : start + length] for start in range(0, len(words), length)]
    yield TEMPLATE.render(picture=shown, cells=cells, columns=client.about["grid"][1])


def build_page(client: Client) -> Any:
    """Return the page, a `gradio.Blocks`. ValueError: gradio is not installed."""
    gr, about = require("gradio", extra="demo"), client.about
    tell, tasks, rows = gr.Progress(), about["tasks"], about.get("grid", [2, 2])[0]
    picture = partial(gr.Image, type="filepath", sources=["upload", "clipboard"], label="picture", height=320, buttons=[])
    number, gallery = partial(gr.Number, precision=0), partial(gr.Gallery, columns=3, height="auto", show_label=False, buttons=["download"])
    seed = partial(number, 0, minimum=0, label="seed")

    def safely(work: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
        @wraps(work)
        def run(*values: Any) -> Iterator[Any]:
            try:
                yield from work(*values)
            except (ValueError, OSError, openai.APIError) as error:
                gr.Warning(reason(error))  # after a gr.Error the button would go on to say Stop

        return run

    def tab(name: str, task: str, work: Callable[..., Iterator[Any]], inputs: list[Any], output: Callable[[], Any]) -> None:
        untrained = task and tasks and task not in tasks
        why = about["why_not"] or (f"This model was not trained for {task}, only for {', '.join(tasks)}." if untrained else "")
        with gr.Tab(name):
            if why:
                gr.Markdown(why)
            else:
                gr.Interface(safely(work), inputs, output(), flagging_mode="never", api_name=False)

    drawing = [gr.Textbox(label="what to draw"), seed(), gr.Slider(1, 10, about["sampling"]["guidance"], step=0.1, label="guidance")]
    looking, reading = [picture()], [picture()]
    completing = [picture(), number(rows // 2, minimum=1, maximum=rows - 1, label="rows to keep"), gr.Textbox(label="its words"), seed()]
    with gr.Blocks(title=f"UniCode: {about['id']}", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.Markdown(f"# {about['id']}")
        with gr.Tab("Talk"):
            turns, shown = gr.State([]), gr.Chatbot(render_markdown=False, height=420, label="conversation", buttons=["copy"])
            box = gr.MultimodalTextbox(file_types=["image"], file_count="multiple", placeholder="Add pictures and ask about them")
            options = {"chatbot": shown, "textbox": box, "additional_inputs": [turns], "additional_outputs": [turns]}
            gr.ChatInterface(safely(lambda message, history, turns: answer(client, message, history, turns)), multimodal=True, **options)

        def draw(words: str, seed: int, guidance: float, tell: Any = tell) -> Iterator[Pictures]:
            yield from client.draw(tell, [], seed, prompt=words, guidance=guidance, n=AT_A_TIME)

        def complete(path: str | None, rows: int, words: str, seed: int, tell: Any = tell) -> Iterator[Pictures]:
            yield from redraw(client, tell, path, rows, prompt=words, seed=seed, n=AT_A_TIME)

        tab("Draw", TEXT_TO_IMAGE, draw, drawing, gallery)
        tab("Complete", TEXT_TO_IMAGE, complete, completing, gallery)
        tab("Words", "", lambda path: look(client, path), looking, gr.HTML)
        tab("Decompress", DECOMPRESSION, lambda path, tell=tell: redraw(client, tell, path), reading, gallery)
    return page
