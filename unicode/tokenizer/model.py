"""The image tokenizer: (B, 3, H, W) in [-1, 1] <-> codes <-> vocabulary ids of the language model."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from safetensors.torch import save
from torch import nn

from unicode.codebook.codebook import Codebook, build_codebooks
from unicode.codebook.embedding_table import LanguageTable
from unicode.codebook.quantizers import HierarchicalQuantizer, ResidualQuantizer, level_channels
from unicode.codebook.search import LatentNorm
from unicode.common.files import atomic_write, read_json, read_tensors, write_json
from unicode.common.hub import HubMixin, write_readme
from unicode.ids.layout import Layout
from unicode.tokenizer.autoencoder import Decoder, Encoder
from unicode.tokenizer.config import TokenizerConfig

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
FORMAT = "unicode-tokenizer-1"
TRAINING_ONLY = (".ema.",)  # parts of state-dict names that a saved tokenizer does not keep
NOT_IN_FINGERPRINT = (".projection", ".steps", ".scale_steps", ".ratio", ".strength")  # ends of names that no code depends on


def build_stack(
    config: TokenizerConfig, table: LanguageTable | None, *, widths: list[int] | None
) -> HierarchicalQuantizer | ResidualQuantizer:
    """Build the stacked quantizer of a tokenizer: for training, or where `widths` of the codebooks' rows are given, for saved weights.

    Raises ValueError: see `build_codebooks`; or another number of widths than of codebooks.
    """
    channels, book = config.map_channels, config.codebook
    if config.type == "hqvae":
        channel_list = level_channels(channels, config.levels, resample=config.resample)
    else:
        channel_list = [channels] * (1 if config.share_codebook else config.depth)
    if widths is None:
        codebooks = build_codebooks(book, table, channels=channel_list)
    else:
        if len(widths) != len(channel_list):
            raise ValueError(f"another architecture than its config: {len(widths)} codebooks, {len(channel_list)} expected")
        empty = torch.zeros(book.num_rows, dtype=torch.long)
        codebooks = [Codebook(torch.zeros(book.num_rows, width), empty, book, learn_scale=False) for width in widths]
    kind = book.normalize
    if kind == "auto" and book.mode == "projected":  # the passes of an RQ-VAE see residuals, whose length must stay free to shrink
        kind = "sphere" if config.type == "hqvae" else "standardize"
    elif kind == "auto":
        kind = "none" if book.mode == "free" else "match"
    norms = [LatentNorm(each.width, kind=kind, decay=book.decay, length=book.mean_length, rows=each.rows) for each in codebooks]
    if config.type == "hqvae":
        return HierarchicalQuantizer(channels, codebooks, norms, resample=config.resample, combine=config.combine)
    return ResidualQuantizer(channels, codebooks, norms[0], depth=config.depth)


@dataclass
class Reconstruction:
    """Output of one forward pass."""

    images: torch.Tensor  # (B, 3, H, W) reconstructions
    codes: list[torch.Tensor]  # one (B, n) int64 per level
    commitment: torch.Tensor  # (L,) commitment loss per level
    entropy: torch.Tensor  # () entropy term
    features: torch.Tensor  # (B, C, H, W) input of the decoder's last convolution, detached
    latents: list[torch.Tensor] = field(default_factory=list)  # one (B, n, E) per level: what its codebook searched, with gradient


class ImageTokenizer(nn.Module, HubMixin):
    """Encoder, stacked codebooks, decoder.

    `table` is the language model's table, for training in a mode that needs one; with `widths` of the codebooks' rows it builds plain
    codebooks for saved weights instead. ValueError: the table is missing, too small or of another width, or sizes do not fit.
    """

    def __init__(self, config: TokenizerConfig, table: LanguageTable | None = None, *, widths: list[int] | None = None) -> None:
        super().__init__()
        self.encoder = Encoder(config.autoencoder, image_size=config.image_size)
        self.quant_conv = nn.Conv2d(config.autoencoder.latent_channels, config.map_channels, 1)
        self.stack = build_stack(config, table, widths=widths)
        self.post_quant_conv = nn.Conv2d(self.stack.out_channels, config.autoencoder.latent_channels, 1)
        self.decoder = Decoder(config.autoencoder, image_size=config.image_size)
        # The saved config has the number of rows and no path of this machine.
        self.config = replace(config, codebook=replace(config.codebook, num_rows=self.num_rows, table=""))
        self.table_model = table.model if table is not None else ""
        self.table_digest = table.digest if table is not None else ""

    @property
    def layout(self) -> Layout:
        """Layout of the ids of an image of the config's size."""
        return self.config.layout(self.config.image_size, self.config.image_size)

    @property
    def num_levels(self) -> int:
        return self.stack.num_levels

    @property
    def codebooks(self) -> list[Codebook]:
        """The codebooks, coarse to fine; one only where the passes of an RQ-VAE share it."""
        return list(self.stack.codebooks)  # type: ignore[arg-type]

    @property
    def row_ids(self) -> torch.Tensor:
        """(K,) int64: the vocabulary id of each code."""
        return self.codebooks[0].row_ids

    @property
    def num_rows(self) -> int:
        return self.codebooks[0].num_rows

    @property
    def device(self) -> torch.device:
        return self.post_quant_conv.weight.device

    def forward(self, images: torch.Tensor) -> Reconstruction:
        """Encode, quantize and decode (B, 3, H, W) images in [-1, 1]."""
        stacked = self.stack(self.quant_conv(self.encoder(images)))
        features = self.decoder.features(self.post_quant_conv(stacked.features))
        reconstructed = self.decoder.conv_out(features)
        return Reconstruction(reconstructed, stacked.codes, stacked.commitment, stacked.entropy, features.detach(), stacked.latents)

    @torch.no_grad()
    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) images in [-1, 1] -> (B, N) int64 codes, rows of the codebook.

        Canonical order: of an HQ-VAE the coarse raster, then finer ones; of an RQ-VAE the raster of cells, depth fastest. ValueError:
        `config.stride` does not divide a side.
        """
        layout = self.config.layout(images.shape[2], images.shape[3])
        with _evaluating(self):
            return layout.join(self.stack(self.quant_conv(self.encoder(images.to(self.device)))).codes)

    @torch.no_grad()
    def decode(self, codes: torch.Tensor, *, levels: int | None = None, layout: Layout | None = None) -> torch.Tensor:
        """(B, N) int64 codes in canonical order -> (B, 3, H, W) images, about [-1, 1], not clamped.

        `levels`: use the first so many levels or passes only; 1 is the coarse map alone. `layout`: layout of images of another size than
        the config's. Raises ValueError: a code that the codebook does not have, or a number of codes that the layout does not have.
        """
        layout = layout or self.layout
        codes = codes.to(self.device)
        if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < self.num_rows:
            found = f"{int(codes.min())} to {int(codes.max())}"
            raise ValueError(f"codes range from {found}, but the codebook has rows 0 to {self.num_rows - 1}")
        parts = layout.split(codes)[:levels]
        grids = list(layout.grids) * (layout.depth if layout.kind == "residual" else 1)
        with _evaluating(self):
            return self.decoder(self.post_quant_conv(self.stack.decode(parts, grids)))  # type: ignore[no-any-return]

    def to_ids(self, codes: torch.Tensor, *, layout: Layout | None = None) -> torch.Tensor:
        """(B, N) codes in canonical order -> (B, N) int64 vocabulary ids in the tokenizer's id order."""
        return (layout or self.layout).arrange(self.row_ids.to(codes.device)[codes])

    def from_ids(self, ids: torch.Tensor, *, layout: Layout | None = None) -> torch.Tensor:
        """(B, N) vocabulary ids in id order -> (B, N) int64 codes in canonical order; inverts `to_ids`.

        Raises ValueError: an id that no row of the codebook stands for.
        """
        known, order = self.row_ids.to(ids.device).sort()
        places = torch.searchsorted(known, ids.contiguous()).clamp_max(len(known) - 1)
        wrong = known[places] != ids
        if wrong.any():
            raise ValueError(f"{int(ids[wrong][0])} is not an image id of this tokenizer ({int(wrong.sum())} such ids)")
        return (layout or self.layout).restore(order[places])

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change when the config or a weight that encoding or decoding uses changes."""
        digest = hashlib.sha256(json.dumps(dataclasses.asdict(self.config), sort_keys=True).encode())
        for name, tensor in sorted(self.inference_state().items()):
            if not name.endswith(NOT_IN_FINGERPRINT):
                digest.update(name.encode())
                digest.update(tensor.flatten().view(torch.uint8).numpy().data)
        return digest.hexdigest()[:16]

    def inference_state(self) -> dict[str, torch.Tensor]:
        """Return the tensors that a saved tokenizer keeps, on the CPU."""
        state = {name: tensor for name, tensor in self.state_dict().items() if not any(part in name for part in TRAINING_ONLY)}
        return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}

    def save_pretrained(self, path: str | Path, *, license_name: str = "", readme: bool = True) -> None:
        """Write config.json, model.safetensors and, with `readme`, the model card README.md into the folder `path`, each atomically.

        `license_name`: as apache-2.0, for the README.md. Raises OSError: the disk is full; files of an earlier save stay.
        """
        with atomic_write(Path(path) / WEIGHTS_FILE, "wb") as file:
            file.write(save(self.inference_state(), {"format": "pt"}))
        content = {
            "format": FORMAT,
            "tokenizer": dataclasses.asdict(self.config),
            "widths": [codebook.width for codebook in self.codebooks],
            "language_model": self.table_model,
            "table_sha256": self.table_digest,
        }
        write_json(Path(path) / CONFIG_FILE, content)
        if readme:
            codebook = f"{self.num_rows} rows, {self.config.codebook.mode} {self.table_model}"
            facts = {"image": f"{self.config.image_size} px, {self.layout.describe()}", "codebook": codebook}
            write_readme(Path(path), facts, reads="load_tokenizer", source=self.folder, license_name=license_name)

    @classmethod
    def from_pretrained(cls, path: str | Path) -> "ImageTokenizer":
        """Read a folder that `save_pretrained` wrote.

        Raises FileNotFoundError: a file is missing. Raises ValueError: a file is damaged or of another architecture.
        """
        folder = Path(path)
        if not (folder / CONFIG_FILE).is_file():
            raise FileNotFoundError(f"{folder} has no {CONFIG_FILE}; expected a folder that save_pretrained wrote")
        content = read_json(folder / CONFIG_FILE)
        if not isinstance(content, dict) or content.get("format") != FORMAT or "tokenizer" not in content:
            raise ValueError(f"{folder / CONFIG_FILE} does not describe a tokenizer of this project (format {FORMAT!r} expected)")
        config = parse_config(content["tokenizer"], source=str(folder / CONFIG_FILE))
        state = read_tensors(folder / WEIGHTS_FILE, wanted="what save_pretrained wrote")
        tokenizer = cls.from_state(config, state, source=str(folder / WEIGHTS_FILE))
        tokenizer.table_model, tokenizer.table_digest = content.get("language_model", ""), content.get("table_sha256", "")
        return tokenizer

    @classmethod
    def from_state(cls, config: TokenizerConfig, state: dict[str, torch.Tensor], *, source: str, partial: bool = False) -> "ImageTokenizer":
        """Build a tokenizer in evaluation mode from tensors as `inference_state` names them.

        `source`: where the tensors come from, for messages. `partial`: missing tensors keep the values that they are built with. Raises
        ValueError: names or shapes that do not fit the config.
        """
        tables = [f"stack.codebooks.{level}.rows" for level in range(len(state))]
        widths = [state[name].shape[-1] for name in tables if name in state]
        try:
            tokenizer = cls(config, widths=widths)
        except (ValueError, RuntimeError) as error:  # RuntimeError: sizes that do not fit into memory
            raise ValueError(f"{source}: no tokenizer of its config can be built: {str(error)[:300]}") from error
        state = {name: tensor for name, tensor in state.items() if not name.endswith(".projection")}  # only training uses it
        try:
            tokenizer.load_state_dict(tokenizer.state_dict() | state if partial else state)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:300]
            raise ValueError(f"{source} holds another architecture than its config: {reason}") from error
        return tokenizer.eval()


@contextmanager
def inference_precision(precision: str, device: torch.device) -> Iterator[None]:
    """Run a block without gradients in reproducible float32 (no TF32, no kernels chosen by timing), or with autocast to bfloat16.

    `precision`: "float32" or "bf16".
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with (
            torch.inference_mode(),
            torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False),
            torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"),
        ):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)


def parse_config(values: Any, *, source: str) -> TokenizerConfig:
    """Return the config in a dictionary read from JSON.

    Raises ValueError: an unknown key, an interpolation or a value that makes no sense; the message names `source`.
    """
    try:
        if not isinstance(values, dict):  # OmegaConf would read a string as YAML
            raise ValueError(f"an object is expected, not {type(values).__name__}")
        if "${" in json.dumps(values):  # a downloaded file must not read environment variables
            raise ValueError("interpolations (${...}) are not read")
        merged = OmegaConf.merge(OmegaConf.structured(TokenizerConfig), OmegaConf.create(values))
        return OmegaConf.to_object(merged)  # type: ignore[return-value]
    except (OmegaConfBaseException, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{source}: {reason}; it was changed by hand or written by another version of this project") from error
