"""What runs left on disk -> the sections of a report."""

import os
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from PIL import Image

from unicode.common.files import read_damaged_jsonl, read_json
from unicode.generate.jobs import NUM_ON_WALL, RESULTS, SETTINGS
from unicode.images.decode import open_image
from unicode.images.listing import spread
from unicode.images.lookup import ImageLookup
from unicode.report import page

NUM_ANSWERS, NUM_RECONSTRUCTED, NUM_DECOMPRESSED = 8, 6, 9
GRID_PADDING = 2  # pixels around the pictures of grid.png
GRID_ROWS = ("original", "reconstruction")
EVALUATE = "python -m unicode.run.eval_tokenizer --ckpt RUN --images IMAGES --out DIR/metrics.json"
ANSWER = "python -m unicode.run.answer --model DIR --questions FILE --images DIR --answers FILE"
DRAW = "python -m unicode.run.generate_images --model DIR --prompts FILE --out DIR"
BENCHMARK = "python -m unicode.run.benchmark NAME --model DIR --data DIR --out DIR"
CORRECT, SHUFFLED = "all", "shuffled_all"  # measures of eval_generation: every object is as the prompt asks, as the prompt of another asks
NEAREST = "nearest_pixels"  # measure of eval_generation --gallery
EXPECTED = ("answer", "answers", "label", "gt_answer")  # fields of a question that may hold the right answer, or several of them
PROTOCOL = "An answer is right if it equals an expected one, in lower case, without punctuation and articles."
FIRST_CURVES = ("loss", "psnr", "accuracy", "usage", "perplexity")
HIDDEN_CURVES = re.compile(
    r"lr$|learning_rate|gradient|grad_norm|epoch|seconds|_per_|weight|memory|images$|tokens$|samples|commitment|l1|l2|steps|flos|runtime"
)
CURVE_TITLES = {
    "usage": "share of the codebook's rows in use",
    "perplexity": "perplexity of the codes",
    "psnr": "PSNR of validation images, dB",
    "commitment": "commitment loss",
}
LIBRARIES = "unicode-mllm torch torchvision transformers peft accelerate deepspeed torchmetrics tokenizers numpy pillow".split()


def read_lines(path: str | Path) -> Iterator[dict[str, Any]]:
    """Return the objects of a JSON Lines file, if it exists; broken lines are skipped, as a run may still be writing."""
    return (record for _, record in read_damaged_jsonl(path) if isinstance(record, dict))


def read_object(path: str | Path) -> dict[str, Any]:
    """Return the object in a JSON file, {} where there is no such file; ValueError if the file holds something else."""
    content = read_json(path) if Path(path).is_file() else {}
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}; expected a JSON object")
    return content


def is_number(value: Any) -> bool:
    """Whether a value of a JSON file is a number; true and false are not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, page.Cell]:
    """Nested values -> dotted name -> number, text or None."""
    flat: dict[str, page.Cell] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value if value is None or is_number(value) else str(value)
    return flat


def read_grid(path: str | Path, side: int) -> np.ndarray:
    """Cut the grid.png of eval_tokenizer into its pictures of `side` pixels.

    Returns (rows, examples, side, side, 3) uint8: originals, reconstructions and, if there are several levels, the coarse level alone.
    Raises ValueError: the size of the PNG does not fit pictures of this side.
    """
    with open_image(path) as opened:
        pixels = np.asarray(opened.convert("RGB"))[GRID_PADDING:, GRID_PADDING:]
    cell = side + GRID_PADDING
    rows, columns = pixels.shape[0] // cell, pixels.shape[1] // cell
    if pixels.shape[:2] != (rows * cell, columns * cell) or rows < 2:
        raise ValueError(f"{path} does not hold rows of pictures of {side} pixels; evaluate the tokenizer again: {EVALUATE}")
    return pixels.reshape(rows, cell, columns, cell, 3).swapaxes(1, 2)[:, :, :side, :side]


def nearest_words(reports: Mapping[str, Mapping[str, Any]], place: int) -> list[str]:
    """Return a line for each report that has words of the picture at `place` of the first one."""
    words = {name: {one["key"]: ", ".join(map(str, one["nearest"])) for one in report.get("words", [])} for name, report in reports.items()}
    keys = [*next(iter(words.values()))][place : place + 1]
    return [f"nearest words{f' {name}' * (len(words) > 1)}: {known[key]}" for key in keys for name, known in words.items() if key in known]


def reconstruction_section(folders: Mapping[str, str | Path]) -> page.Section:
    """Return the section on the reconstructions in the first folder of metrics.json and grid.png, and the nearest words of all."""
    title, name = "Images and their reconstructions", "Reconstruction"
    reports = {each: read_object(Path(folder) / "metrics.json") for each, folder in folders.items()}
    folder, report = next(iter(folders.values()), None), next(iter(reports.values()), {})
    if folder is None or not report:
        return page.Section(title, name, [page.missing("The reconstructions were not measured. They come from", EVALUATE)])
    protocol, levels, metrics = report.get("protocol", {}), report.get("codes", {}).get("levels", []), report.get("metrics", {})
    count, side = protocol.get("num_images"), protocol.get("image_size")
    images = f"{count or '?'} images of {protocol.get('image_set', 'an unnamed set')}"
    codes = " + ".join(f"{one['codes'] / count:.0f}" for one in levels) + " codes, coarse to fine" if levels and count else "codes"
    blocks = [page.paragraph(f"{images}, encoded and decoded by the tokenizer; each becomes {codes}.")]
    if side and (Path(folder) / "grid.png").is_file():
        examples = read_grid(Path(folder) / "grid.png", int(side)).swapaxes(0, 1)[:NUM_RECONSTRUCTED]
        rows = [zip(GRID_ROWS, example, strict=False) for example in examples]
        pairs = [[(page.picture(pixels, f"example {at}: {row}"), row) for row, pixels in example] for at, example in enumerate(rows, 1)]
        cards = [page.Card(pair, lines=nearest_words(reports, at)) for at, pair in enumerate(pairs)]
        blocks.append(page.gallery(cards, "pairs"))
    else:
        blocks.append(page.missing(f"There is no {Path(folder) / 'grid.png'}. It comes from", EVALUATE))
    silent = [str(folders[each]) for each in [*reports][1:] if not reports[each].get("words")]
    if silent:
        blocks.append(page.missing(f"There are no nearest words in {', '.join(silent)}. They come from", f"{EVALUATE} --probe --base BASE"))
    known = {key: one for key, one in metrics.items() if one.get("value") is not None}
    if known:
        values = [(key, one["value"], one.get("unit", ""), str(one.get("protocol", ""))) for key, one in known.items()]
        blocks.append(page.details("measures", page.table(["measure", "value", "", "how it is measured"], values)))
    lost = [page.paragraph(f"{key}: {one.get('reason', '')}; {one.get('remedy', '')}") for key, one in metrics.items() if key not in known]
    if lost:
        blocks.append(page.details(f"{len(lost)} measures could not be computed", *lost))
    if levels:
        head = ["level", "codes", "rows used", "of rows", "perplexity", "commonest row, %"]
        usage = [[str(one["level"]), one["codes"], one["used"], one["rows"], one["perplexity"], 100 * one["top1_share"]] for one in levels]
        blocks.append(page.details("use of the codebook", page.table(head, usage)))
    figures = [("PSNR of reconstructions", f"{known['psnr']['value']:.1f} dB", images)] if "psnr" in known else []
    return page.Section(title, name, blocks, figures)


def read_curves(folder: str | Path) -> dict[str, dict[str, page.Points]]:
    """Return group -> name -> points (step, value) of a run's metrics.jsonl, the most important groups first.

    The metrics usage_0 and usage_1 form the group "usage"; loss, val_loss and train/loss_vqa form "loss".
    """
    groups: dict[str, dict[str, list[tuple[float, float]]]] = {}
    lines = [line for line in read_lines(Path(folder) / "metrics.jsonl") if is_number(line.get("step"))]
    for line in sorted(lines, key=lambda line: float(line["step"])):
        for name, value in line.items():
            stem = re.sub(r"^(?:train|eval|val)[/_]|_\d+$", "", name)
            group = "loss" if "loss" in re.split(r"[/_]", stem) else stem
            if name != "step" and is_number(value):
                groups.setdefault(group, {}).setdefault(name, []).append((line["step"], value))
    order = sorted(groups, key=lambda group: (FIRST_CURVES.index(group) if group in FIRST_CURVES else len(FIRST_CURVES), group))
    return {group: dict(groups[group]) for group in order}


def training_section(runs: Mapping[str, str | Path]) -> page.Section:
    """Return the section of curves, for run folders by name."""
    blocks = []
    for name, folder in runs.items():
        curves = [(group, series) for group, series in read_curves(folder).items() if not HIDDEN_CURVES.search(group)]
        charts = [page.line_chart(CURVE_TITLES.get(group, group.replace("_", " ")), series) for group, series in curves]
        blocks += [page.heading(name), *([{"kind": "charts", "charts": list(filter(None, charts))}] if any(charts) else [])]
        if not any(charts):
            blocks.append(page.missing(f"No curves: {Path(folder) / 'metrics.jsonl'} holds no steps of a run."))
        summary = flatten(read_object(Path(folder) / "summary.json"))
        blocks += [page.details("summary of the run", page.table(["", "value"], list(summary.items())))] if summary else []
    return page.Section("Training curves", "Training", blocks or [page.missing("No training run was named; give --tokenizer and --llm.")])


@dataclass(frozen=True)
class Asked:
    """One question and a model's answer; `right` is None where no right answer is known."""

    image: str
    text: str
    kind: str
    expected: tuple[str, ...]
    answer: str
    right: bool | None
    groups: tuple[str, ...] = ()  # what is counted apart: its kind, or split with kind and with form of words


def plain(text: str) -> str:
    """Return an answer as it is compared."""
    return " ".join(word for word in re.findall(r"\w+", text.casefold()) if word not in ("a", "an", "the"))


def read_answers(questions: str | Path, answers: str | Path) -> list[Asked]:
    """Return the questions that were answered, in the order of the question file.

    `questions`: JSON Lines of LLaVA's form (question_id, image, text, category or kind), with the right answer in one of `EXPECTED`.
    `answers`: JSON Lines with question_id and text.
    """
    texts = {str(line.get("question_id")): str(line.get("text", "")) for line in read_lines(answers)}
    asked = []
    for line in (line for line in read_lines(questions) if str(line.get("question_id")) in texts):
        answer = texts[str(line.get("question_id"))]
        known: Any = next((line[name] for name in EXPECTED if line.get(name) not in (None, "", [])), [])
        expected = tuple(map(str, known if isinstance(known, list) else [known]))
        right = plain(answer) in map(plain, expected) if expected else None
        image = line.get("image") or ""
        text, kind = str(line.get("text", "")).replace("<image>", "").strip(), str(line.get("kind") or line.get("category") or "")
        split, form = line.get("split", ""), line.get("form", "")
        groups = (f"{split}, {kind}", f"{split}, {form} forms of words") if form else (kind,) if kind else ()
        asked.append(Asked(str(image[0] if isinstance(image, list) else image), text, kind, expected, answer, right, groups))
    return asked


def count_right(asked: Sequence[Asked]) -> dict[str, tuple[int, int]]:
    """Return kind or other group -> (right, questions with an expected answer), with "all" first."""
    scored = [one for one in asked if one.right is not None]
    names = sorted({group for one in scored for group in one.groups})
    kinds = {"all": scored} | {name: [one for one in scored if name in one.groups] for name in names}
    return {kind: (sum(bool(one.right) for one in chosen), len(chosen)) for kind, chosen in kinds.items()}


def answers_section(questions: str | Path | None, answers: Mapping[str, str | Path], images: ImageLookup) -> page.Section:
    """Return the section on questions about images.

    `questions`: their file; None if there is none. `answers`: name of a model -> file of its answers, the model itself first, then its
    baselines. `images`: finds the pictures of the questions.
    """
    title, name = "Questions about images", "Questions"
    asked = {model: read_answers(questions, path) for model, path in answers.items()} if questions else {}
    asked = {model: found for model, found in asked.items() if found}
    if not asked:
        return page.Section(title, name, [page.missing("No question was answered. Answers come from", ANSWER)])
    counts = {model: count_right(found) for model, found in asked.items()}
    shares = {
        model: {kind: round(100 * right / max(scored, 1), 1) for kind, (right, scored) in found.items()} for model, found in counts.items()
    }
    own, *baselines = asked
    right, scored = counts[own]["all"]
    figures = []
    blocks = [page.paragraph(f"{len(asked[own]):,} questions were answered; the question file holds no right answers.")]
    if scored:
        note = ", ".join(f"{model} {shares[model]['all']:.1f} %" for model in baselines) or f"{scored:,} questions"
        figures = [("questions answered right", f"{shares[own]['all']:.1f} %", note)]
        rows = [[kind, counts[own][kind][1], *(found.get(kind) for found in shares.values())] for kind in counts[own]]
        text = f"{right:,} of {scored:,} questions about images are answered right. {PROTOCOL}"
        blocks = [page.paragraph(text), page.table(["kind", "questions", *(f"{model}, %" for model in asked)], rows)]
    for text, value in (("Answered right", True), ("Answered wrong", False), ("Answers", None)):
        kinds = {one.kind: [other for other in asked[own] if other.right is value and other.kind == one.kind] for one in asked[own]}
        chosen = [one for found in kinds.values() for one in spread(found, -(-NUM_ANSWERS // len(kinds)))][:NUM_ANSWERS]
        if chosen:
            blocks += [page.heading(text), page.gallery([answer_card(one, images) for one in chosen])]
    return page.Section(title, name, blocks, figures)


def answer_card(one: Asked, images: ImageLookup) -> page.Card:
    """Return the picture of a question, the question without its instruction on how to answer, and the answer."""
    found = images.find(one.image) if one.image else None
    shown = [(page.picture(found, f"the picture of the question: {one.text}"), "")] if found else []
    instruction = re.search(r"Answer (?:the question )?(?:using|with) ", one.text)  # LLaVA's files end questions with one
    question = (one.text[: instruction.start()].rstrip() if instruction else "") or one.text
    return page.Card(shown, question, answer=one.answer, expected=" / ".join(dict.fromkeys(one.expected)), right=one.right)


def _read_drawn(folder: str | Path | None) -> list[tuple[dict[str, Any], Image.Image]]:
    if folder is None or not Path(folder).is_dir():
        return []
    files = ImageLookup([folder])
    found = ((line, files.find(str(line.get("file", "")))) for line in read_lines(Path(folder) / RESULTS))
    return [(line, image) for line, image in found if image is not None]


def opening(folder: str | Path | None, places: Sequence[str], *, note: str = "") -> list[page.Block]:
    """Return the wall of drawings with their prompts that opens the page: the first ones of a folder of `unicode.run.generate_images`.

    `places`: sources of pictures; the text of ATTRIBUTION.txt in or beside one is shown. `note`: what the prompts are about.
    """
    drawn = _read_drawn(folder)
    prompts = [(str(line.get("prompt", "")), image) for line, image in drawn[:NUM_ON_WALL]]
    cards = [page.Card([(page.picture(image, f"drawn from: {prompt or 'no prompt'}"), "")], lines=[prompt]) for prompt, image in prompts]
    if not cards:
        return []
    text = f"Drawn token by token from the words below{note and f': {note}'}. The first {len(cards)} of {len(drawn):,}, right or wrong."
    files = [parent / "ATTRIBUTION.txt" for place in places for parent in (Path(place), Path(place).parent)]
    sources = dict.fromkeys(file.read_text(encoding="utf-8", errors="replace") for file in files if file.is_file())
    return [page.paragraph(text), page.gallery(cards, "wall"), *(page.paragraph(credit, "note") for credit in sources)]


def generation_section(
    folder: str | Path | None, *, baselines: Mapping[str, str | Path] | None = None, each: Sequence[page.Card] = ()
) -> page.Section:
    """Return the section of images that were generated from prompts.

    `folder`: folder of `unicode.run.generate_images`, with the report of `unicode.run.eval_generation` in it. `baselines`: name -> folder
    of other images with such a report. `each`: cards of images that are shown one by one.
    """
    title, name = "Images from prompts", "Drawings"
    drawn = _read_drawn(folder)
    if folder is None or not drawn:
        return page.Section(title, name, [page.missing("No image was generated. Images come from", DRAW)])
    seconds = [float(line["seconds"]) for line, _ in drawn if line.get("seconds")]
    speed = f", {page.number(float(f'{fmean(seconds):.2g}'))} s each" if seconds else ""
    text = f"{len(drawn):,} images that the language model wrote token by token from a prompt{_sampling(Path(folder) / SETTINGS)}{speed}."
    blocks = [page.paragraph(text)]
    scores = {model: _read_scores(path) for model, path in {"this model": folder, **(baselines or {})}.items()}
    measures = list(dict.fromkeys(measure for found in scores.values() for measure in found))
    if measures:
        rows = [[measure, *(found.get(measure) for found in scores.values())] for measure in measures]
        first = [row for row in rows if str(row[0]).removeprefix("shuffled_") in (CORRECT, NEAREST)]
        blocks += [page.table(["measure", *scores], first)] if first else []
        blocks.append(page.details("all measures", page.table(["measure", *scores], rows)))
    else:
        blocks.append(page.missing("The images were not measured. Measures come from", "python -m unicode.run.eval_generation --help"))
    blocks += [page.heading("One by one"), page.gallery(each, "pairs")] if each else []
    own = scores["this model"]
    measured = [("images with every object right", CORRECT, SHUFFLED)]
    measured.append(("images nearest to the right picture", NEAREST, f"shuffled_{NEAREST}"))
    figures = [
        (what, str(own[measure]), f"shuffled prompts {own[baseline]}" if baseline in own else f"{len(drawn):,} prompts")
        for what, measure, baseline in measured
        if own.get(measure)
    ]
    return page.Section(title, name, blocks, figures)


def nearest_cards(folder: str | Path | None, images: ImageLookup) -> list[page.Card]:
    """Return a card for each image of a folder that `unicode.run.eval_generation --gallery` measured: beside it the nearest picture."""
    lines = {str(line.get("id")): line for line in read_lines(Path(folder or "") / "nearest.jsonl")}
    cards = []
    for drawn, image in _read_drawn(folder):
        line, prompt = lines.get(str(drawn.get("id")), {}), str(drawn.get("prompt", ""))
        right, key = (str(line.get(name, "")) for name in ("right", NEAREST))
        shown, found = [(page.picture(image, f"drawn from: {prompt}"), "drawn")], images.find(key) if key else None
        shown += [(page.picture(found, f"nearest to it: {key}"), "nearest picture")] if found else []
        names = [images.caption(one) or one for one in (key, right)]
        cards.append(page.Card(shown, prompt, answer=names[0], expected=names[1], right=key == right if key else None))
    return cards


def decompression_section(folder: str | Path | None, images: ImageLookup) -> page.Section:
    """Return the section of images that the model was given compressed and wrote out in full."""
    title, name = "Image decompression", "Decompression"
    drawn = _read_drawn(folder)
    if folder is None or not drawn:
        return page.Section(title, name, [page.missing("No image was decompressed. It is done by", f"{DRAW} --decompress")])
    text = "The model gets an image in a quarter of the tokens, the codes of each cell added up, and writes all its codes."
    exact = [float(line["exact"]) for line, _ in drawn if is_number(line.get("exact"))]
    psnr = [float(line["psnr"]) for line, _ in drawn if is_number(line.get("psnr"))]
    text += f" {100 * fmean(exact):.1f} % of the codes of {len(exact):,} images are exact." if exact else ""
    text += f" PSNR {fmean(psnr):.1f} dB." if psnr else ""
    files, cards = ImageLookup([folder]), []
    for line, after in spread(drawn, NUM_DECOMPRESSED):
        key = str(line.get("reference") or line.get("id") or "")
        before = files.find(key) or images.find(key)
        shown = [(page.picture(before, f"{key} before compression"), "before")] if before else []
        notes = [f"{100 * line['exact']:.0f} % exact"] if is_number(line.get("exact")) else []
        notes += [f"{line['psnr']:.1f} dB"] if is_number(line.get("psnr")) else []
        cards.append(page.Card([*shown, (page.picture(after, f"{key} as the model wrote it"), "after")], lines=[", ".join(notes) or key]))
    figures = [("codes exact after decompression", f"{100 * fmean(exact):.1f} %", f"{len(exact):,} images")] if exact else []
    return page.Section(title, name, [page.paragraph(text), page.gallery(cards, "pairs")], figures)


def _sampling(settings: Path) -> str:
    """How ids were sampled, as text that follows "from a prompt"; "" if unknown."""
    sampling = read_object(settings).get("sampling")
    known = sampling if isinstance(sampling, dict) else {}
    temperature, guidance, number = (known.get(name) for name in ("temperature", "guidance", "candidates"))
    if not isinstance(temperature, int | float) or not isinstance(guidance, int | float):
        return ""
    drawn = "greedily" if temperature == 0 else f"at temperature {page.number(temperature)}"
    kept = f", the most typical of {number}" if temperature and isinstance(number, int) else ""
    return f", {drawn}, {'without guidance' if guidance == 1 else f'with guidance {page.number(guidance)}'}{kept}"


def _read_scores(folder: str | Path) -> dict[str, page.Cell]:
    metrics = read_object(Path(folder) / "metrics.json").get("metrics", {})
    known = {name: one for name, one in metrics.items() if one["value"] is not None}
    return dict.fromkeys(metrics) | {name: f"{one['value']:.4g} {one.get('unit', '')}".strip() for name, one in known.items()}


def benchmarks_section(folders: Mapping[str, str | Path]) -> page.Section:
    """Return the section; `folders` is name -> --out of `unicode.run.benchmark`, the model first. Blind baselines lie in them."""
    found = dict(folders)
    for name, folder in folders.items():
        blind = "blind" if len(folders) == 1 else f"{name} blind"
        found |= {f"{blind}, {path.name.removeprefix('blank_')}": path for path in sorted(Path(folder).glob("blank_*"))}
    scores: dict[str, dict[str, dict[str, Any]]] = {}
    for name, folder in found.items():
        contents = [(path, read_object(path)) for path in sorted(Path(folder).glob("*/scores.json"))]
        scores[name] = {str(content.get("title", path.parent.name)): content for path, content in contents}
    names = list(dict.fromkeys(benchmark for contents in scores.values() for benchmark in contents))
    if not names:
        return page.Section("Benchmarks", "Benchmarks", [page.missing("No benchmark was scored. Scores come from", BENCHMARK)])
    rows, numbers = [], []
    for name in names:
        known = next(contents[name] for contents in scores.values() if name in contents)
        counts = " of ".join(str(known[key]) for key in ("n_answered", "n_expected") if known.get(key) is not None)
        headlines = [contents.get(name, {}).get("headline") for contents in scores.values()]
        rows.append([name, *headlines, str(known.get("unit", "")), counts])
        notes = [page.paragraph(str(one), "note") for one in (known.get("protocol"), *(known.get("notes") or [])) if one]
        values = list(flatten(known.get("values", {})).items())
        numbers += [page.details(f"{name}: all numbers", *notes, page.table(["", "value"], values))] if values else []
    return page.Section("Benchmarks", "Benchmarks", [page.table(["benchmark", *scores, "unit", "answered"], rows), *numbers])


def read_steps(path: str | Path | None) -> list[dict[str, Any]]:
    """Return the steps of a pipeline's steps.jsonl in the order in which they first ran; [] without a file.

    A step that ran several times has the time of its last run; the time of a skipped run counts only if there is no other. Returns per step
    its step (name), command, seconds, peak_mib (None: not known) and skipped.
    """
    steps: dict[str, dict[str, Any]] = {}
    for line in read_lines(path) if path else ():
        step = {"command": "", "peak_mib": None, "skipped": False, **line, "seconds": float(line.get("seconds") or 0)}
        if "step" in step and (step["step"] not in steps or not step["skipped"]):
            steps[step["step"]] = step
    return list(steps.values())


def steps_section(steps: Sequence[Mapping[str, Any]]) -> page.Section:
    """Return the section on the time and memory of each step."""
    title, name = "Time and memory of each step", "Time"
    if not steps:
        return page.Section(title, name, [page.missing("No step was timed. The quickstart times them:", "bash scripts/quickstart.sh")])
    total = page.clock(sum(step["seconds"] for step in steps))
    rows = {"kind": "steps", "rows": steps, "longest": max(step["seconds"] for step in steps) or 1}
    blocks = [page.paragraph(f"{total} in {len(steps)} steps on {describe_machine()}."), rows]
    return page.Section(title, name, blocks, [("from nothing to this page", total, f"{len(steps)} steps")])


def commands_section(steps: Sequence[Mapping[str, Any]], command: str) -> page.Section:
    """Return the section of versions and commands; `command` made this page."""
    commands = [f"# {step['step']}\n{step['command']}" for step in steps if step["command"]]
    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    code = {"kind": "code", "text": "\n\n".join([*commands, f"# this page\n{command}"])}
    blocks = [code, page.table(["library", "version"], list(versions.items())), page.paragraph(f"Made on {describe_machine()}.", "note")]
    return page.Section("Versions and the exact commands", "Commands", blocks)


def describe_machine() -> str:
    """Return the GPUs that the driver names, the number of cores, the processor and the system."""
    graphics = [_find_line(path, "Model") for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))]
    processor = _find_line(Path("/proc/cpuinfo"), "model name") or platform.machine()
    parts = [f"{len(graphics)} x {name}" for name in graphics[:1]]
    return ", ".join([*parts, f"{os.cpu_count()} CPU cores ({processor}, {platform.system()})"])


def _find_line(path: Path, name: str) -> str:
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    found = re.search(rf"^{name}[ \t]*:(.*)$", text, flags=re.MULTILINE)
    return found[1].strip() if found else ""
