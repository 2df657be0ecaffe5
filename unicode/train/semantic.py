"""Codes of a batch, captions and features of a vision model -> losses that give the codes meaning."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from safetensors import safe_open
from torch import Tensor, nn
from torchvision.models import get_model

from unicode.annotations.public import open_captions
from unicode.codebook.codebook import update_codebooks_
from unicode.codebook.embedding_table import LanguageTable
from unicode.codebook.quantizers import straight_through, to_map
from unicode.codebook.search import LatentNorm
from unicode.common.distributed import all_reduce_sum_, on_main, rank, world_size
from unicode.common.files import atomic_write, name_errors, read_json, read_tensors, stable_bytes
from unicode.common.logging import get_logger
from unicode.images.dataset import ImageDataset
from unicode.images.loader import Batch, build_loader
from unicode.llm.llava import digest_weights, open_vision_model
from unicode.llm.model import open_description
from unicode.llm.vocabulary import first_line
from unicode.tokenizer.losses import TeacherConfig, WordsConfig
from unicode.tokenizer.model import ImageTokenizer, Reconstruction
from unicode.train.config import TrainTokenizerConfig

NUM_LOOKED_AT = 1000  # pictures whose captions are looked for before a run starts
SAME = 0.999  # cosine from which two captions count as the same
DECAY = 0.99  # of the mean caption and of the statistics of features, a step
IMAGENET = ("mean", (0.485, 0.456, 0.406)), ("std", (0.229, 0.224, 0.225))  # colours of a teacher that does not name its own
DEFAULT_SIDE, PROCESSOR = 224, "preprocessor_config.json"
logger = get_logger(__name__)


class WordSpace:
    """The rows of a language model, each column at mean 0 and deviation 1 over the ordinary ids, and its text tokenizer.

    `rows`: (V, D). `excluded`: ids that are no words. A picture or a caption is the mean of the rows of its ids.
    """

    def __init__(self, rows: Tensor, excluded: Tensor, text_tokenizer: Any) -> None:
        self.text_tokenizer = text_tokenizer
        self.ordinary = torch.ones(len(rows), dtype=torch.bool).index_fill(0, excluded, False)
        chosen = rows[self.ordinary]
        self.rows = (rows - chosen.mean(0)) / chosen.std(0, correction=0).clamp_min(1e-6)

    def caption_means(self, texts: Sequence[str]) -> Tensor:
        """Captions -> (B, D) means of the rows of their words, zeros where one has none. ValueError: the tokenizer of another model."""
        tokens = self.text_tokenizer([f" {text.strip()}" for text in texts], add_special_tokens=False)["input_ids"]
        ids = torch.tensor([index for one in tokens for index in one], dtype=torch.long)
        if len(ids) and int(ids.max()) >= len(self.rows):
            found = f"captions have the id {int(ids.max())}, the table has {len(self.rows)} rows"
            raise ValueError(f"{found}; name the language model that the table is from")
        owner = torch.repeat_interleave(torch.tensor([len(one) for one in tokens]))
        ids, owner = ids[self.ordinary[ids]], owner[self.ordinary[ids]]
        sums = torch.zeros(len(texts), self.rows.shape[1]).index_add_(0, owner, self.rows[ids])
        return sums / owner.bincount(minlength=len(texts)).clamp_min(1).unsqueeze(1)


def nearest_shares(latents: Tensor, codes: Tensor, rows: Tensor, *, count: int, temperature: float) -> tuple[Tensor, Tensor]:
    """Return the rows near each latent, (N, k) int64 with its own code first, and their shares (N, k), which sum to 1.

    The value of the shares is one for the code, zero for the others. Their gradient is that of a softmax over the distances to the k rows
    (Shi et al. 2024, IBQ, over the nearest rows instead of all), with respect to latents (N, E) and rows (K, E), float32.
    """
    half = rows.square().sum(1) / 2
    with torch.no_grad():
        near = torch.cat([(part @ rows.T - half).topk(min(count, len(rows))).indices for part in latents.split(1024)])
        near[:, 0] = codes
    scores = torch.einsum("ne,nke->nk", latents, F.embedding(near, rows)) - half[near]
    soft = (scores / (2 * temperature * half.detach().mean())).softmax(1)
    return near, straight_through(soft, torch.zeros_like(soft).index_fill(1, near.new_zeros(1), 1))


def sigmoid_loss(pictures: Tensor, captions: Tensor, own: Tensor, *, scale: Tensor, bias: Tensor) -> Tensor:
    """Return the summed sigmoid loss of pictures (B, D) against all captions (M, D) of a step (Zhai et al. 2023, SigLIP, equation 1).

    `own`: (B,) the row of each picture's caption. Captions of the same words are positives of each other's pictures. A zero row is a
    missing caption: neither it nor its picture enters.
    """
    captions = F.normalize(captions, dim=1)
    present = captions.any(1)
    logits = scale * (F.normalize(pictures, dim=1) @ captions.T) + bias
    losses = F.softplus(torch.where(captions[own] @ captions.T > SAME, -logits, logits))
    return (losses * (present[own, None] & present)).sum()


@dataclass
class Targets:
    """What the pictures of a micro-batch shall mean."""

    step: int
    captions: Tensor | None = None  # (M, D) of all pictures of the step, all ranks; zeros where there is none
    own: Tensor | None = None  # (B,) which of them belong to the micro-batch
    features: Tensor | None = None  # (B, h, w, D) of the teacher


class WordsTerm(nn.Module):
    """Pulls the codes of a picture, as words of the language model, to the words of its caption and from those of other captions.

    A picture is the mean of the language model's rows of its codes, whatever the mode of the codebook. The mean caption of training is
    subtracted from every caption, so that words that all have do not count.
    """

    def __init__(self, options: WordsConfig, space: WordSpace, captions_of: Callable[[str], Sequence[str]], *, batch_size: int) -> None:
        super().__init__()
        self.options, self.space, self.captions_of = options, space, captions_of
        self.rows = nn.Buffer(space.rows, persistent=False)  # (V, D)
        self.mean = nn.Buffer(torch.zeros(space.rows.shape[1]))  # (D,) of the captions so far
        self.steps = nn.Buffer(torch.zeros(()))  # () that had captions
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.bias = nn.Parameter(torch.tensor(-math.log(batch_size)))  # a picture has one caption of so many

    def gather(self, step: int, micro: Sequence[Batch]) -> list[Targets]:
        """Return the targets of the micro-batches of this rank; a collective call.

        Captions do not depend on what is trained, so those of the whole step are there before its first micro-batch: pictures meet the same
        captions, however the step is split. Of several captions the step chooses one.
        """
        known = [self.captions_of(key) for batch in micro for key in batch.keys]
        chosen = self.space.caption_means([found[step % len(found)] if found else "" for found in known]).to(self.rows.device)
        everywhere = chosen.new_zeros(world_size(), *chosen.shape)
        everywhere[rank()] = chosen
        captions = all_reduce_sum_(everywhere).flatten(0, 1)
        present = captions.any(1, keepdim=True)
        weight = (1 / (self.steps + 1)).clamp_min(1 - DECAY) * present.any()
        self.mean.lerp_(captions.sum(0) / present.sum().clamp_min(1), weight)
        self.steps.add_(present.any())
        captions = torch.where(present, captions - self.mean, 0)
        places = torch.arange(len(chosen), device=captions.device) + rank() * len(chosen)
        return [Targets(step, captions, own) for own in places.split([len(batch.keys) for batch in micro])]

    def forward(self, made: Reconstruction, tokenizer: ImageTokenizer, targets: Targets) -> dict[str, Tensor]:
        """Return first the loss, whose mean over micro-batches and ranks is that of all captioned pictures of the step, and their share."""
        assert targets.captions is not None and targets.own is not None
        batch, options = len(made.images), self.options
        words = self.rows.new_zeros(batch, len(self.rows))  # share of each vocabulary id in each picture
        for level in options.levels:
            codebook, codes = tokenizer.stack.codebook(level), made.codes[level].flatten()
            latents = made.latents[level].float().flatten(0, 1) / codebook.scale
            limits = {"count": options.neighbours, "temperature": options.temperature}
            near, shares = nearest_shares(latents, codes, codebook.training_rows(), **limits)  # type: ignore[arg-type]
            shares = shares.view(batch, -1) * (batch / len(codes) / len(options.levels))
            words = words.scatter_add(1, codebook.row_ids[near].view(batch, -1), shares)
        present, total = targets.captions.any(1).sum(), len(targets.captions)
        loss = sigmoid_loss(words @ self.rows, targets.captions, targets.own, scale=self.log_scale.exp(), bias=self.bias)
        return {"words": loss * (total / batch) / present.clamp_min(1), "captioned": present / total}


class Teacher:
    """A frozen vision model. It is no module, so that no checkpoint and no optimizer has it.

    `grid`: (h, w) cells over which its features are averaged. Raises FileNotFoundError: there is no such folder or file. Raises ValueError:
    it holds no vision model that reads pictures alone.
    """

    def __init__(self, options: TeacherConfig, *, grid: tuple[int, int], device: torch.device) -> None:
        self.grid, path, setting = grid, Path(options.path), "objective.semantic.teacher.path"
        model = open_backbone(path, options.network) if path.is_file() else open_vision_model(path, setting=setting, patches=False)
        own = getattr(getattr(model, "config", None), "image_size", 0)
        self.side = options.image_size or (own if isinstance(own, int) else 0) or DEFAULT_SIDE
        processor = read_json(path / PROCESSOR) if (path / PROCESSOR).is_file() else {}
        colours = [tuple(processor.get(f"image_{name}") or default) for name, default in IMAGENET]
        self.mean, self.std = (torch.tensor(values, device=device).view(3, 1, 1) for values in colours)
        self.fingerprint = digest_weights(model, repr((self.side, colours)))
        self.model = model.to(device).requires_grad_(False).eval()
        try:
            self.width = self.features(Batch(torch.zeros(1, 3, self.side, self.side, device=device), [], [], [])).shape[-1]
        except Exception as error:  # a model of another kind fails in its own way
            raise ValueError(f"{setting} '{path}' holds no model that makes features of pictures alone ({first_line(error)})") from error

    @torch.no_grad()
    def features(self, batch: Batch) -> Tensor:
        """Pictures (B, 3, H, W) in [-1, 1] -> (B, h, w, D) float32; in bfloat16 on a GPU."""
        images = batch.images
        pixels = F.interpolate(images.float(), (self.side, self.side), mode="bicubic", antialias=True)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=images.device.type == "cuda"):
            made = self.model(((pixels + 1) / 2 - self.mean) / self.std)
        made = getattr(made, "last_hidden_state", made)
        if made.ndim == 3:  # tokens: patches stand behind a class token and registers, where the model has them
            side = math.isqrt(made.shape[1])
            made = rearrange(made[:, -side * side :], "b (h w) d -> b d h w", h=side)
        return rearrange(F.adaptive_avg_pool2d(made.float(), self.grid), "b d h w -> b h w d")


def open_backbone(path: Path, network: str) -> Any:
    """Return a CNN of torchvision up to its last map of features, with the weights of a file of tensors alone.

    Raises ValueError: no network of that name, a damaged file, or one of another network.
    """
    try:
        model = get_model(network, weights=None)
        model.load_state_dict(read_tensors(path, wanted=f"weights of {network}"))
    except (ValueError, RuntimeError, TypeError) as error:
        remedy = "set objective.semantic.teacher.network to its name in torchvision, as resnet50"
        raise ValueError(f"{path} does not open as weights of the network '{network}' ({first_line(error)}); {remedy}") from error
    return getattr(model, "features", None) or nn.Sequential(*list(model.children())[:-2])  # without average and classifier


class FeatureCache:
    """A teacher's features by the key of a picture, float16 in a safetensors file that the main rank makes where it is missing.

    Raises FileNotFoundError: there is neither file nor teacher. Raises ValueError: it is of another teacher, transform or grid.
    """

    def __init__(self, path: Path, dataset: ImageDataset, teacher: Teacher | None, *, grid: tuple[int, int]) -> None:
        about = {"transform": dataset.protocol, "grid": str(grid)} | ({"teacher": teacher.fingerprint} if teacher is not None else {})
        if teacher is not None and not path.is_file():
            on_main(partial(self._write, path, dataset, teacher, about))
        if not path.is_file():
            raise FileNotFoundError(f"there is no cache {path}; name the teacher that makes it in objective.semantic.teacher.path")
        with name_errors(path):
            self.path, self.file = path, safe_open(path, "pt")
        found = self.file.metadata() or {}
        for name, value in about.items():
            if found.get(name) != value:
                remedy = "delete it, or name another file in objective.semantic.teacher.cache"
                raise ValueError(f"{path} holds features of another {name}: {found.get(name)!r}, this run has {value!r}; {remedy}")
        self.fingerprint, self.width = found["teacher"], self.file.get_slice("features").get_shape()[-1]
        names = bytes(self.file.get_tensor("keys").numpy()).decode("utf-8", "surrogateescape")
        self.rows = {key: row for row, key in enumerate(names.split("\0"))}

    @staticmethod
    def _write(path: Path, dataset: ImageDataset, teacher: Teacher, about: dict[str, str]) -> None:
        logger.info("%s: features of %d pictures", path, len(dataset))
        order = [list(range(at, min(at + 32, len(dataset)))) for at in range(0, len(dataset), 32)]
        loader = build_loader(dataset, order, num_workers=0, device=teacher.mean.device)
        parts = [(batch.keys, teacher.features(batch).half().cpu()) for batch in loader]
        names = "\0".join(key for keys, _ in parts for key in keys).encode("utf-8", "surrogateescape")
        tensors = {"keys": torch.frombuffer(bytearray(names), dtype=torch.uint8), "features": torch.cat([part for _, part in parts])}
        with atomic_write(path, "wb") as file:
            file.write(stable_bytes(tensors, about))

    def features(self, batch: Batch) -> Tensor:
        """Keys of pictures -> (B, h, w, D) float32. ValueError: a picture is not in the file."""
        lacking = [key for key in batch.keys if key not in self.rows]
        if lacking:
            raise ValueError(f"{self.path} has no features of {lacking[0]}; delete it, and a run with the teacher makes it anew")
        features = self.file.get_slice("features")
        return torch.stack([features[self.rows[key]] for key in batch.keys]).to(batch.images.device).float()


class TeacherTerm(nn.Module):
    """A small network predicts the features of a teacher from the quantized map, cell by cell and on average, by their cosine.

    The features are standardized by running statistics, so that what all pictures have in common does not count. Levels of several grids
    are put side by side on the finest.
    """

    def __init__(self, options: TeacherConfig, tokenizer: ImageTokenizer, dataset: ImageDataset, *, device: torch.device) -> None:
        super().__init__()
        grids = tokenizer.layout.grids
        self.options, self.grids = options, [grids[level % len(grids)] for level in options.levels]
        grid, given = max(self.grids), bool(options.path) and (not options.cache or Path(options.path).exists())
        with torch.random.fork_rng(devices=[]):  # a network draws its first weights: the head's must not depend on whether there is one
            teacher = Teacher(options, grid=grid, device=device) if given else None
        source = FeatureCache(Path(options.cache), dataset, teacher, grid=grid) if options.cache else teacher
        assert source is not None
        self.source = source
        width = sum(tokenizer.stack.codebook(level).width for level in options.levels)
        self.head = nn.Sequential(nn.Linear(width, options.width), nn.GELU(), nn.Linear(options.width, self.source.width))
        self.norm = LatentNorm(self.source.width, kind="standardize", decay=DECAY)

    def forward(self, made: Reconstruction, tokenizer: ImageTokenizer, targets: Targets) -> dict[str, Tensor]:
        """Return the loss, in [0, 4]."""
        assert targets.features is not None
        maps = []
        for level, grid in zip(self.options.levels, self.grids, strict=True):
            values = straight_through(made.latents[level].float(), tokenizer.stack.codebook(level).lookup(made.codes[level]))
            maps.append(F.interpolate(to_map(values, grid), targets.features.shape[1:3], mode="nearest"))
        predicted = self.head(rearrange(torch.cat(maps, 1), "b e h w -> b (h w) e"))
        wanted = self.norm(targets.features.flatten(1, 2))
        cells, whole = F.cosine_similarity(predicted, wanted, dim=2), F.cosine_similarity(predicted.mean(1), wanted.mean(1), dim=1)
        return {"teacher": 2 - cells.mean() - whole.mean()}


class Semantic(nn.Module):
    """The semantic terms of a run, with what they learn for themselves; nothing of it is saved with the tokenizer.

    Raises ValueError: no captions, or the teacher or its cache does not fit. Raises FileNotFoundError: there is no teacher.
    """

    def __init__(self, config: TrainTokenizerConfig, tokenizer: ImageTokenizer, dataset: ImageDataset, table: LanguageTable | None) -> None:
        super().__init__()
        self.words: WordsTerm | None = None
        self.teacher: TeacherTerm | None = None
        options = config.objective.semantic
        if options.words.weight > 0:
            assert table is not None
            captions_of = open_captions(dataset, config.data)
            check_captions(dataset, captions_of)
            space = WordSpace(table.rows, table.excluded_ids, open_description(options.words.model)[1])
            self.words = WordsTerm(options.words, space, captions_of, batch_size=config.train.batch_size)
        if options.teacher.weight > 0:
            self.teacher = TeacherTerm(options.teacher, tokenizer, dataset, device=tokenizer.device)
        self.to(tokenizer.device)

    def prepare(self, step: int, micro: Sequence[Batch]) -> list[Targets]:
        """Return the targets of each micro-batch of a step; a collective call."""
        targets = self.words.gather(step, micro) if self.words is not None else [Targets(step) for _ in micro]
        if self.teacher is not None:
            for one, batch in zip(targets, micro, strict=True):
                one.features = self.teacher.source.features(batch)
        return targets

    def forward(self, made: Reconstruction, tokenizer: ImageTokenizer, targets: Targets) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the weighted sum of the terms and the scalars for the log, detached; float32 outside autocast."""
        total, parts = made.commitment.new_zeros(()), dict[str, Tensor]()
        with torch.autocast(made.images.device.type, enabled=False):
            for term in [term for term in (self.words, self.teacher) if term is not None]:
                found = term(made, tokenizer, targets)
                total, parts = total + term.options.weight_at(targets.step) * next(iter(found.values())), parts | found
        return total, {name: part.detach() for name, part in parts.items()}

    def average_gradients_(self) -> None:
        """Replace the gradients of this rank by their means over the ranks; those of the tokenizer are DistributedDataParallel's."""
        for parameter in self.parameters():
            if parameter.grad is not None:
                all_reduce_sum_(parameter.grad).div_(world_size())

    def update_(self) -> None:
        """Move the statistics of the features once, after an optimizer step."""
        update_codebooks_([part for part in self.modules() if isinstance(part, LatentNorm)])

    def get_extra_state(self) -> dict[str, str]:
        return {"teacher": self.teacher.source.fingerprint if self.teacher is not None else ""}

    def set_extra_state(self, state: dict[str, str]) -> None:
        if state != (own := self.get_extra_state()):
            found = f"{state['teacher']!r}, this run has {own['teacher']!r}"
            raise ValueError(f"the checkpoint was trained with another objective.semantic.teacher: {found}; choose another run.dir")


def check_captions(dataset: ImageDataset, captions_of: Callable[[str], Sequence[str]]) -> None:
    """Warn where pictures lack captions; ValueError where all of those looked at do."""
    looked = [dataset.key(index) for index in range(0, len(dataset), max(1, len(dataset) // NUM_LOOKED_AT))]
    lacking = [key for key in looked if not captions_of(key)]
    if len(lacking) == len(looked):
        remedy = "set data.captions to an annotation file, put .txt files beside the pictures, or set objective.semantic.words.weight=0"
        raise ValueError(f"objective.semantic.words needs captions, and none of {len(looked)} pictures has one, as {lacking[0]}; {remedy}")
    if lacking:
        logger.warning("no caption in %d of %d pictures, as %s; they are left out of the words term", len(lacking), len(looked), lacking[0])
