"""The data set gives every record's example, counts what it leaves out, and names what is wrong before anything is learned."""

import json
import pickle
import random
import time
from dataclasses import replace
from multiprocessing import get_context

import numpy as np
import pytest
import torch

from unicode.annotations.records import TASKS, make_turns
from unicode.ids.layout import Layout
from unicode.ids.text import write_run
from unicode.llm import dataset
from unicode.llm.dataset import ConversationDataset, split_source
from unicode.llm.examples import ExampleBuilder
from unicode.llm.template import get_template
from unicode.llm.vocabulary import Markers

LAYOUT = Layout("hierarchical", ((2, 2), (4, 4)))
KEYS = [f"{number:02d}.png" for number in range(8)]
MARKERS = Markers(500, 501, 502, 503)


def asked(key: str, *, rounds: int = 1, name: str = "") -> dict:
    texts = [text for number in range(rounds) for text in (f"{'<image> ' if not number else ''}Question {number}?", f"answer {number}")]
    return {"id": name or key, "image": key, "conversations": make_turns(texts)}


def written(ids, **fields) -> dict:
    meaning = {"layout": LAYOUT.describe(), "tokenizer": "0123456789abcdef"}
    return {"id": "w", "task": "text_to_image", **meaning, "conversations": make_turns(["Draw a bus.", write_run(ids)]), **fields}


@pytest.fixture(scope="module")
def stored(tmp_path_factory, make_store):
    """Folder of a store, and its ids by key."""
    folder = tmp_path_factory.mktemp("ids") / "store"
    return folder, make_store(folder, KEYS, skip=KEYS[7:])


@pytest.fixture
def opened(tmp_path, byte_level, stored):
    """Write records to a file and open them as a data set."""

    def open_records(records, **options) -> ConversationDataset:
        path = tmp_path / "records.json"
        path.write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")
        changes = {name: options.pop(name) for name in ("template", "markers", "layout", "vocab_size") if name in options}
        builder = replace(ExampleBuilder(get_template("vicuna_v1"), byte_level, MARKERS, None, 504), **changes)
        return ConversationDataset([path], builder, **{"stores": [stored[0]], **options})

    return open_records


def test_examples_and_what_is_known_of_them(opened, stored):
    ids = stored[1][KEYS[1]]
    records = [asked(KEYS[0]), asked(KEYS[1], rounds=2), written(ids), {"id": 3, "conversations": make_turns(["Où?", "là"])}]
    data = opened(records)
    examples = [data[index] for index in range(len(data))]
    assert [len(example) for example in examples] == data.lengths.tolist()
    assert [TASKS[task] for task in data.tasks] == ["image_to_text", "image_to_text", "text_to_image", "text_only"]
    assert [example.task for example in examples] == [TASKS[task] for task in data.tasks]
    assert data.num_images.tolist() == [1, 1, 1, 0] and data.sources.tolist() == [0, 0, 0, 0]
    assert examples[1].input_ids[examples[1].is_image].tolist() == ids.tolist()
    assert examples[2].labels[examples[2].is_image].tolist() == ids.tolist()
    assert examples[1].images == (KEYS[1],) and examples[2].images == ()
    assert data.sample(3).turns == ("Où?", "là")
    assert (data.layout, data.fingerprint, data.intake.refused) == (LAYOUT, "0123456789abcdef", {})


def test_several_files(opened, tmp_path, byte_level, stored):
    paths = []
    for number in range(2):
        paths.append(tmp_path / f"{number}.json")
        paths[-1].write_text(json.dumps([asked(KEYS[number])] * (number + 1)))
    data = ConversationDataset(paths, ExampleBuilder(get_template("plain"), byte_level, MARKERS), stores=[stored[0]])
    assert data.sources.tolist() == [0, 1, 1] and data[2].images == (KEYS[1],)
    assert data.intake.records == 3


def test_paths_may_start_from_a_folder(tmp_path, byte_level, make_store):
    make_store(tmp_path / "store", ["coco/1.png"])
    path = tmp_path / "a.json"
    path.write_text(json.dumps([asked("1.png")]))
    builder = ExampleBuilder(get_template("plain"), byte_level, MARKERS)
    data = ConversationDataset([f"{path}@coco"], builder, stores=[tmp_path / "store"])
    assert data[0].images == ("coco/1.png",)
    assert split_source(path) == (path, "")
    with pytest.raises(ValueError, match="names no folder below the image root"):
        split_source("a.json@../up")


def test_long_records_are_cut_between_turns_or_left_out(opened):
    records = [asked(KEYS[0]), asked(KEYS[1], rounds=6), {"id": "text", "conversations": make_turns(["word " * 200, "ok"])}]
    whole = opened(records)
    limit = int(whole.lengths[0]) + 20
    data = opened(records, max_length=limit)
    assert len(data) == 2 and data.lengths.max() <= limit
    assert data.intake.cut == 1 and data.intake.refused == {"too long": 1}
    assert 1 <= len(data.sample(1).turns) // 2 < 6
    assert torch.equal(data[1].input_ids, whole[1].input_ids[: len(data[1])])
    assert int(data[1].is_image.sum()) == LAYOUT.num_codes
    assert "1 cut between turns; 1 left out: too long (first: " in data.intake.describe()


def test_compressed_images(opened, stored):
    ids = stored[1][KEYS[0]]
    record = {
        **written(ids),
        "task": "decompression",
        "input_mode": "sum",
        "conversations": make_turns([f"Unpack {write_run(ids)}", write_run(ids)]),
    }
    for options in ({}, {"input_mode": "sum"}):
        example = opened([record], **options)[0]
        assert example.extra_ids.shape == (4, 4) and example.num_image_targets == 20
    assert opened([asked(KEYS[0])], input_mode="sum")[0].extra_ids.shape == (4, 4)


def test_isolated_turns(opened):
    example = opened([asked(KEYS[0], rounds=3)], isolate_turns=True)[0]
    assert example.branch.unique().tolist() == [0, 1, 2, 3]


def test_layout_from_the_records(opened, stored):
    ids = stored[1][KEYS[0]]
    text = {"id": "t", "conversations": make_turns(["a", "b"])}
    data = opened([text, written(ids)], stores=[])
    assert (data.layout, data.fingerprint) == (LAYOUT, "0123456789abcdef")
    assert data.builder.layout == LAYOUT


def test_positions_for_features(opened):
    example = opened([asked(KEYS[0])], stores=[], image_positions=9)[0]
    assert int(example.is_image.sum()) == 9 and example.images == (KEYS[0],)
    assert (example.input_ids[example.is_image] == 0).all()
    with pytest.raises(ValueError, match="this model reads image files"):
        opened([written(range(100, 120))], image_positions=9)


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([asked("nowhere.png")], r"1 of 1 records cannot be used: 1 x no ids, as .*records.json, record 0 .*'nowhere.png' is in no store"),
        ([asked(KEYS[7])], "could not be encoded: truncated"),
        ([{"id": 1, "image": KEYS[0], "conversations": make_turns(["no tag", "b"])}], "image tags do not match images, as .*0 <image>"),
        ([{"id": 1, "conversations": make_turns(["<image>", "b"])}], "1 <image> in the conversation, 0 images"),
        ([{"conversations": [{"from": "gpt", "value": "a"}, {"from": "human", "value": "b"}]}], "human begins"),
        ([written(range(100, 119))], "a run of 19 ids is not whole rows"),
        ([written([*range(100, 119), 504])], "image ids range from 100 to 504, but the language model has 504 tokens"),
        ([written([*range(100, 119), 503])], "holds the id of a marker"),
        ([written(range(100, 120), layout="hierarchical 2x2 + 4x4 in order 'rows'")], "record 0 .*order 'rows', expected .*'nested'"),
        ([written(range(100, 120), tokenizer="f" * 16)], "ids are of the image tokenizer ffffffffffffffff, expected 0123456789abcdef"),
        ([written(range(100, 120), layout="spiral")], "record 0 .*'spiral' describes no layout"),
        ([], "no record of .* is left for training"),
    ],
)
def test_what_is_wrong_is_named_first(opened, records, message):
    with pytest.raises(ValueError, match=message):
        opened(records)


def test_bad_records_may_be_left_out(opened):
    data = opened([asked(KEYS[0]), asked("nowhere.png"), asked("elsewhere.png"), asked(KEYS[1])], skip_bad=True)
    assert len(data) == 2 and data.intake.refused == {"no ids": 2}
    assert "'nowhere.png'" in data.intake.examples["no ids"]
    assert data[1].images == (KEYS[1],)


def test_errors_that_no_record_can_mend(opened, stored, tmp_path, byte_level):
    records = [asked(KEYS[0])]
    with pytest.raises(ValueError, match=r"names the image '00.png', but no store of ids is given; name one with data.stores"):
        opened(records, stores=[])
    with pytest.raises(ValueError, match="holds ids of a vocabulary of 256 tokens, but the language model has 200"):
        opened(records, vocab_size=200)
    with pytest.raises(ValueError, match="ids of two layouts do not mix"):
        opened(records, layout=Layout("hierarchical", ((2, 2), (4, 4)), order="rows"))
    with pytest.raises(ValueError, match="holds ids of the tokenizer 0123456789abcdef, not of ffffffffffffffff"):
        opened(records, layout=LAYOUT, fingerprint="f" * 16)
    builder = ExampleBuilder(get_template("plain"), byte_level)
    with pytest.raises(FileNotFoundError, match=r"no annotation file .*none.json; make some with"):
        ConversationDataset([tmp_path / "none.json"], builder)
    with pytest.raises(ValueError, match="no annotation files"):
        ConversationDataset([], builder)
    (tmp_path / "cut.json").write_text('[{"id": 1')
    with pytest.raises(ValueError, match=r"cut.json, record 0, line 1: the file is cut off"):
        ConversationDataset([tmp_path / "cut.json"], builder)


def test_ids_of_two_tokenizers_in_one_file(opened):
    records = [written(range(100, 120)), written(range(100, 120), tokenizer="f" * 16)]
    with pytest.raises(ValueError, match=r"record 1 .*ffffffffffffffff, expected 0123456789abcdef"):
        opened(records, stores=[])


def test_travels_to_workers(opened):
    data = opened([asked(key) for key in KEYS[:6]])
    first = data[3]
    copy = pickle.loads(pickle.dumps(data))
    assert torch.equal(copy[3].input_ids, first.input_ids)
    loader = torch.utils.data.DataLoader(data, batch_size=None, num_workers=2)
    assert [len(example) for example in loader] == data.lengths.tolist()


def test_the_second_start_reads_no_record(opened, tmp_path, monkeypatch):
    monkeypatch.setenv(dataset.CACHE, str(tmp_path / "cache"))
    records = [asked(KEYS[0]), asked("nowhere.png"), asked(KEYS[1], rounds=9)]
    first = opened(records, skip_bad=True, max_length=120)
    monkeypatch.setattr(ConversationDataset, "_measure", lambda *_: pytest.fail("a record was measured again"))
    again = opened(records, skip_bad=True, max_length=120)
    assert again.intake == first.intake and again.intake.cut == 1
    assert all(np.array_equal(getattr(again, name), getattr(first, name)) for name in ("lengths", "tasks", "num_images"))
    assert torch.equal(again[1].labels, first[1].labels)
    assert (again.layout, again.fingerprint) == (first.layout, first.fingerprint)
    for change in ({"max_length": 119}, {"template": get_template("llava_v1")}, {"markers": replace(MARKERS, image_start=499)}):
        with pytest.raises(pytest.fail.Exception, match="measured again"):
            opened(records, skip_bad=True, **{"max_length": 120, **change})
    for file in (tmp_path / "cache" / "records").glob("*.npz"):
        file.write_bytes(b"damaged")
    with pytest.raises(pytest.fail.Exception, match="measured again"):
        opened(records, skip_bad=True, max_length=120)


def test_several_processes_find_the_same(opened, monkeypatch):
    rng = random.Random(0)
    records = [asked(rng.choice(KEYS), rounds=rng.randint(1, 4), name=str(number)) for number in range(600)]
    alone = opened(records, skip_bad=True)
    monkeypatch.setattr(dataset, "PARALLEL_BYTES", 0)
    monkeypatch.setattr(dataset.os, "sched_getaffinity", lambda _: {0, 1})
    together = opened(records, skip_bad=True)
    assert together.intake == alone.intake and together.intake.refused["no ids"] > 0
    assert np.array_equal(together.lengths, alone.lengths)
    mixed = [written(range(100, 120))] * 300 + [written(range(100, 120), tokenizer="f" * 16)] * 300
    with pytest.raises(ValueError, match=r"ffffffffffffffff, .*0123456789abcdef"):
        opened(mixed, stores=[])
    with pytest.raises(ValueError, match="no store of ids is given"):
        opened(records, stores=[])


def test_ranks_without_a_cache_share_the_processors(opened, monkeypatch):
    monkeypatch.setattr(dataset, "PARALLEL_BYTES", 0)
    monkeypatch.setattr(dataset.os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    monkeypatch.setattr(dataset, "get_context", lambda _: pytest.fail("each of 8 ranks on 8 processors started more processes"))
    assert len(opened([asked(key) for key in KEYS[:3]])) == 3


def test_places_count_from_both_ends(opened):
    data = opened([asked(key) for key in KEYS[:3]])
    assert data[-1].images == (KEYS[2],) and len(list(data)) == 3
    with pytest.raises(IndexError):
        data[3]


def test_processes_that_start_together_read_a_file_once(tmp_path, monkeypatch):
    monkeypatch.setenv(dataset.CACHE, str(tmp_path / "cache"))
    path, seen = tmp_path / "good.json", tmp_path / "seen"
    path.write_text('[{"n": 3}, {"n": 4}]')

    def measure(record, place):
        with open(seen, "a") as file:
            file.write(f"{record['n']}\n")
        time.sleep(0.2)
        return dataset.Measured(record["n"], 1, 0, 0, False)

    def read(queue):
        queue.put(dataset.index_records(path, measure, settings={}).rows["length"].tolist())

    context = get_context("fork")
    queue = context.Queue()
    processes = [context.Process(target=read, args=(queue,)) for _ in range(3)]
    for process in processes:
        process.start()
    assert [queue.get(timeout=60) for _ in processes] == [[3, 4]] * 3
    for process in processes:
        process.join()
    assert seen.read_text() == "3\n4\n"
