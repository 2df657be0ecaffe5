"""Measuring for the evaluation commands: metric networks whose weights are available, this rank's images, reconstructions, their files."""

import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn
from tqdm import tqdm

from unicode.common.distributed import all_reduce_sum_, barrier, is_main, rank, world_size
from unicode.images.dataset import DataConfig, ImageDataset, Skipped
from unicode.images.loader import Batch, SkipReport, build_loader
from unicode.images.torchvision_sets import TorchvisionSet
from unicode.metrics import NotComputed
from unicode.metrics.probe import centred, label_probes, retrieval
from unicode.metrics.reconstruction import ReconstructionMetrics
from unicode.run.command import log
from unicode.run.encode_images import default_workers
from unicode.tokenizer.losses import load_lpips, trunk_file
from unicode.tokenizer.model import ImageTokenizer, inference_precision

MetricNetwork = nn.Module | NotComputed
NUM_WORDS = 8  # nearest words shown of a picture

DOWNLOAD_TIMEOUT = 30.0  # seconds without a byte before a download counts as failed; the libraries have no limit


def load_networks(makers: Mapping[str, Callable[[], MetricNetwork]], *, device: torch.device) -> dict[str, MetricNetwork]:
    """Load metric networks onto the device of every rank; one that is missing on some rank is missing on all. A collective call.

    `makers`: by name, the function that loads a network from a named file, from its library's cache, or by its download. Raises
    FileNotFoundError, ValueError: a named file does not exist or holds something else.
    """
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)
    if not is_main():
        barrier()  # the main rank downloads, the others then find the files
    try:
        loaded = {name: make() for name, make in makers.items()}
    finally:
        if is_main():
            barrier()
        socket.setdefaulttimeout(timeout)
    present = torch.tensor([isinstance(network, nn.Module) for network in loaded.values()], dtype=torch.int64)
    everywhere = (all_reduce_sum_(present) == world_size()).tolist()
    for (name, network), shared in zip(loaded.items(), everywhere, strict=True):
        if isinstance(network, nn.Module):
            absent = NotComputed("the weights are not on every machine of the job", "put them in the same place on each machine")
            loaded[name] = network.to(device) if shared else absent
    return loaded


def load_lpips_network(trunk: str, path: str = "") -> MetricNetwork:
    """Return LPIPS on one trunk, two (B, 3, H, W) in [-1, 1] -> (B,), or why there is none. Errors as `load_networks`."""
    try:
        return load_lpips(trunk, path=path, setting=f"--{trunk}")
    except FileNotFoundError:
        if path:
            raise
        place = trunk_file(trunk)
        reason = f"{place.name} is not in {place.parent} and could not be downloaded"
        return NotComputed(reason, f"put torchvision's {place.name} at {place}, or give its path with --{trunk}")


def describe_missing(networks: Mapping[str, object]) -> str:
    """Return the names of the metrics that cannot be computed, with the remedies; "nothing" where all can."""
    return " | ".join(f"{name} ({one.remedy})" for name, one in networks.items() if isinstance(one, NotComputed)) or "nothing"


def read_share(dataset: ImageDataset, *, batch_size: int, num_workers: int, device: torch.device, title: str) -> Iterator[Batch]:
    """Yield batches of every world_size-th image, starting with this rank's, behind a progress bar.

    `num_workers`: processes that read images; -1: the default of the device. `title`: of the progress bar.
    """
    share = range(rank(), len(dataset), world_size())
    batches = [list(share[start : start + batch_size]) for start in range(0, len(share), batch_size)]
    workers = default_workers(device) if num_workers < 0 else num_workers
    with tqdm(total=len(share), desc=title, unit=" images", disable=not is_main()) as progress:
        for batch in build_loader(dataset, batches, num_workers=workers, device=device):
            progress.update(len(batch.indices) + len(batch.skipped))
            yield batch


def measure_batch(
    tokenizer: Any, batch: Batch, metrics: ReconstructionMetrics, *, layout: Any, precision: str
) -> tuple[Tensor, list[Tensor]]:
    """Encode and decode a batch and add it to `metrics`, which are computed in float32 or better.

    `tokenizer`: an ImageTokenizer; decoded a second time from its coarsest level where it has several. `precision`: "float32" or "bf16", of
    the tokenizer. Returns (rows, B, 3, H, W): originals, reconstructions, and those of the coarsest level where there are several; and the
    codes of each level.
    """
    with inference_precision(precision, tokenizer.device):
        codes = tokenizer.encode(batch.images)
        full = tokenizer.decode(codes, layout=layout).float()
        coarse = tokenizer.decode(codes, layout=layout, levels=1).float() if tokenizer.num_levels > 1 else None
    parts = layout.split(codes)
    with inference_precision("float32", tokenizer.device):
        metrics.update(batch.images, full, parts, coarse=coarse)
    return torch.stack([batch.images, full] if coarse is None else [batch.images, full, coarse]), parts


class Probe:
    """What codes tell without a trained language model: pictures as means of rows, one mean per level, and their captions.

    `base`: the language model whose rows they are and whose words captions have; without it the rows are the codebook's, and only labels
    are probed. Raises ValueError, FileNotFoundError: it is no language model, or another one than the tokenizer's.
    """

    def __init__(self, tokenizer: ImageTokenizer, dataset: ImageDataset, data: DataConfig, *, base: str) -> None:
        from unicode.annotations.public import open_captions
        from unicode.codebook.embedding_table import row_digest
        from unicode.llm.model import open_description
        from unicode.llm.vocabulary import load_embedding
        from unicode.train.semantic import WordSpace

        self.captions_of, self.space = open_captions(dataset, data), None
        self.labelled = isinstance(getattr(dataset, "source", None), TorchvisionSet)
        self.rows = [tokenizer.stack.codebook(level).rows.cpu() for level in range(tokenizer.num_levels)]
        if base:
            embedding = load_embedding(base)
            if row_digest(embedding.rows) != tokenizer.table_digest:
                raise ValueError(f"--base {base} is another language model than that of the tokenizer, {tokenizer.table_model or 'none'}")
            self.space = WordSpace(embedding.rows, embedding.excluded_ids(), open_description(base)[1])
            self.rows = [self.space.rows[tokenizer.row_ids.cpu()]] * tokenizer.num_levels
        self.seen: list[tuple[int, str, tuple[Tensor, ...]]] = []  # index, key and a (D,) mean per level of each picture

    def add(self, batch: Batch, codes: list[Tensor]) -> None:
        """Add the pictures of a batch and their codes, one (B, n) per level."""
        means = [F.embedding(part.cpu(), rows).mean(1) for part, rows in zip(codes, self.rows, strict=True)]
        self.seen += zip(batch.indices, batch.keys, zip(*means, strict=True), strict=True)

    def report(self, examples: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Return entries by name, and key, caption and nearest words of the first `examples` pictures of this rank; a collective call."""
        shown, gathered = [key for _, key, _ in self.seen[:examples]], [self.seen] * world_size()
        if world_size() > 1:
            distributed.all_gather_object(gathered, self.seen)
        seen = sorted((one for part in gathered for one in part), key=lambda one: one[0])
        keys, levels = [key for _, key, _ in seen], [torch.stack(means) for means in zip(*(means for _, _, means in seen), strict=True)]
        texts = [next(iter(self.captions_of(key)), "") for key in keys]
        labels = texts if self.labelled else [key.rpartition("/")[0] for key in keys]
        remedy = "give a torchvision set, or a folder with a folder of pictures for each label"
        metrics: dict[str, Any] = dict.fromkeys(("knn", "linear_probe"), NotComputed("the pictures have no labels", remedy).to_dict())
        metrics["caption_of_picture_at_1"] = NotComputed("no words of a language model, or no captions", "give --base DIR").to_dict()
        if len(set(labels)) > 1:  # of the pictures every second one is learned from
            joined = torch.cat(levels, dim=1)
            metrics |= label_probes(joined[::2], labels[::2], joined[1::2], labels[1::2])
        captioned = [place for place, text in enumerate(texts) if text]
        if self.space is None or len(captioned) < 2:
            return metrics, []
        coarse, kept = levels[0], [texts[place] for place in captioned]
        metrics |= retrieval(coarse[captioned], self.space.caption_means(kept), kept)
        places = [keys.index(key) for key in shown]
        likeness = (centred(coarse)[places] @ F.normalize(self.space.rows, dim=1).T).masked_fill(~self.space.ordinary, -2)
        words = [[self.space.text_tokenizer.decode([index]).strip() for index in row] for row in likeness.topk(NUM_WORDS).indices.tolist()]
        return metrics, [{"key": keys[at], "caption": texts[at], "nearest": found} for at, found in zip(places, words, strict=True)]


def gather_skipped(skipped: list[Skipped], path: Path) -> int:
    """Collect the skipped images of all ranks, write them to `path` if there are any, and return their number; a collective call."""
    gathered: list[Any] = [skipped] * world_size()
    if world_size() > 1:
        distributed.all_gather_object(gathered, skipped)
    report = SkipReport()
    for part in gathered:
        report.add(part)
    if is_main():
        path.unlink(missing_ok=True)  # of an earlier evaluation
        if len(report):
            report.write(path)
            log.warning("%s; all of them: %s", report.summary(), path)
    return len(report)
