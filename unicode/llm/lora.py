"""Which weights learn: LoRA adapters beside frozen linear layers, or the layers themselves; of the shared codebook the marker rows only."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedModel

from unicode.llm.vocabulary import Markers

if TYPE_CHECKING:
    from peft import PeftModel

TRAIN_MARKERS = ("auto", "on", "off")


@dataclass
class LoraSettings:
    """Low-rank adaptation (Hu et al., 2021) of every linear layer of the language model but its output layer."""

    enabled: bool = True
    """Train adapters; false tunes the whole model but for its embedding table and output layer."""
    r: int = 128
    """Rank."""
    alpha: float = 256.0
    """Scale: an adapter adds alpha / r times its product."""
    dropout: float = 0.05
    """Dropout in front of an adapter."""
    train_markers: str = "auto"
    """Let the embedding rows of the image markers learn, with adapters and in full tuning: `on`, `off`, or `auto`, which is on but
    under ZeRO-3, where the rows of a split table cannot be picked out on every device."""

    def __post_init__(self) -> None:
        """Reject values that make no sense."""
        self.train_markers = {"True": "on", "False": "off"}.get(self.train_markers, self.train_markers)  # YAML reads on and off so
        if self.r < 1 or self.alpha <= 0 or not 0 <= self.dropout < 1:
            raise ValueError(f"lora.r {self.r} must be at least 1, alpha {self.alpha} positive and dropout {self.dropout} in [0, 1)")
        if self.train_markers not in TRAIN_MARKERS:
            raise ValueError(f"lora.train_markers '{self.train_markers}' is unknown; choose {', '.join(TRAIN_MARKERS)}")


def add_lora_(model: PreTrainedModel, settings: LoraSettings, markers: Markers, *, train_markers: bool = True) -> "PeftModel":
    """Put an adapter beside every linear layer but the output layer, freeze everything else, and let the marker rows learn.

    The base weights are not touched: embedding table and output layer keep their bytes, and what is saved is the adapter with the
    marker rows in it.

    Args:
        model: the base model; it becomes part of the result.
        settings: rank, scale, dropout.
        markers: ids of the image markers.
        train_markers: let their rows learn (`marker_rows_train` says whether they may).

    Returns:
        The model with its adapter, on whose trainable weights an optimizer may be built.
    """
    from peft import LoraConfig, get_peft_model

    rows: dict[str, list[int]] = {}
    if train_markers:
        ids = sorted(set(markers.ids()))
        rows[module_name(model, model.get_input_embeddings())] = ids
        output = model.get_output_embeddings()
        if output is not None and not shares_table(model):
            rows[module_name(model, output)] = ids
    config = LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]
        lora_dropout=settings.dropout,
        target_modules="all-linear",
        bias="none",
        task_type="CAUSAL_LM",
        trainable_token_indices=rows or None,
    )
    return get_peft_model(model, config)  # type: ignore[return-value, arg-type]


def freeze_table_(model: PreTrainedModel, markers: Markers, *, train_markers: bool = True) -> None:
    """Make a model ready for full tuning: all weights learn but the embedding table and the output layer, of which only the marker rows do.

    The rows of the codebook get no gradient, so an optimizer without weight decay leaves their bytes alone.
    """
    model.requires_grad_(True)
    for module in tables(model):
        weight = module.get_parameter("weight")
        weight.requires_grad_(train_markers)
        if train_markers:
            keep = torch.tensor(sorted(set(markers.ids())))
            weight.register_hook(lambda gradient, keep=keep: _only_rows(gradient, keep))


def marker_rows_train(settings: LoraSettings, *, zero_stage: int) -> bool:
    """Whether the marker rows learn in a run.

    Raises:
        ValueError: asked for under ZeRO-3 on a CPU, where peft cannot pick rows of a split table.
    """
    if settings.train_markers == "on" and zero_stage == 3 and not torch.cuda.is_available():
        raise ValueError("lora.train_markers=on does not work with ZeRO-3 on a CPU; set lora.train_markers=auto, or take ZeRO-2")
    return settings.train_markers == "on" or (settings.train_markers == "auto" and zero_stage < 3)


def tables(model: PreTrainedModel) -> Iterator[nn.Module]:
    """Yield the embedding table and, where it has weights of its own, the output layer."""
    yield model.get_input_embeddings()
    output = model.get_output_embeddings()
    if output is not None and not shares_table(model):
        yield output


def shares_table(model: PreTrainedModel) -> bool:
    """Whether the output layer uses the embedding table itself (tied embeddings)."""
    output = model.get_output_embeddings()
    return output is not None and output.weight is model.get_input_embeddings().weight  # type: ignore[union-attr]


def module_name(model: nn.Module, wanted: Any) -> str:
    """Return the dotted name of a module inside `model`."""
    return next(name for name, module in model.named_modules() if module is wanted)


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Return how many weights learn and how many there are, also where ZeRO-3 has split them."""
    sizes = [(getattr(parameter, "ds_numel", parameter.numel()), parameter.requires_grad) for parameter in model.parameters()]
    return sum(size for size, learns in sizes if learns), sum(size for size, _ in sizes)


def is_marker_row(name: str, parameter: nn.Parameter) -> bool:
    """Whether a trainable parameter of that name holds marker rows: those of peft, or a table that learns in full tuning."""
    return "trainable_tokens" in name or (parameter.ndim == 2 and name.endswith(("embed_tokens.weight", "lm_head.weight", "wte.weight")))


def _only_rows(gradient: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """The gradient (V, E) with zeros everywhere but in `rows`."""
    rows = rows.to(gradient.device)
    return torch.zeros_like(gradient).index_copy_(0, rows, gradient.index_select(0, rows))
