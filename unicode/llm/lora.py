"""Trainable weights of a language model: LoRA adapters or all layers; of the embedding table the rows of image markers, and of words."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedModel

from unicode.llm.vocabulary import Markers

if TYPE_CHECKING:
    from peft import PeftModel

TRAIN_MARKERS = ("auto", "on", "off")
LARGE_TABLE = 2**22  # Weights of a table from which on a copy of it in each forward costs more than anything else there


@dataclass
class LoraSettings:
    """Low-rank adaptation (Hu et al., 2021) of every linear layer of the language model except its output layer."""

    enabled: bool = True  # Train adapters; false tunes the whole model except its embedding table and output layer
    r: int = 128  # Rank
    alpha: float = 256.0  # Scale: an adapter adds alpha / r times its product
    dropout: float = 0.05  # Dropout in front of an adapter
    train_markers: str = "auto"
    """Train the embedding rows of the image markers, with adapters and in full tuning: `on`, `off`, or `auto`: on except under ZeRO-3,
    where single rows of a split table cannot be trained on every device."""
    train_words: bool = False  # In full tuning, train also the embedding rows that no picture uses; the codebook's rows stay as they are

    def __post_init__(self) -> None:
        self.train_markers = {"True": "on", "False": "off"}.get(self.train_markers, self.train_markers)  # YAML reads on and off as booleans
        if self.r < 1 or self.alpha <= 0 or not 0 <= self.dropout < 1:
            raise ValueError(f"lora.r {self.r} must be at least 1, alpha {self.alpha} positive and dropout {self.dropout} in [0, 1)")
        if self.train_markers not in TRAIN_MARKERS:
            raise ValueError(f"lora.train_markers '{self.train_markers}' is unknown; choose {', '.join(TRAIN_MARKERS)}")
        if self.train_words and (self.enabled or self.train_markers == "off"):
            raise ValueError("lora.train_words needs full tuning and trained markers; set lora.enabled=false lora.train_markers=auto")


def add_lora_(model: PreTrainedModel, settings: LoraSettings, markers: Markers, *, train_markers: bool = True) -> "PeftModel":
    """Put an adapter beside every linear layer except the output layer, freeze everything else; return the model with its adapter.

    Embedding table and output layer are not changed. `train_markers`: train the rows of the markers, which the adapter that is saved then
    contains; see `marker_rows_train`.
    """
    from peft import LoraConfig, get_peft_model

    names = {module: name for name, module in model.named_modules()}
    rows = {names[module]: sorted(markers.ids()) for module in tables(model)} if train_markers else None
    config = LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]
        lora_dropout=settings.dropout,
        target_modules="all-linear",
        bias="none",
        task_type="CAUSAL_LM",
        trainable_token_indices=rows,
    )
    return spare_tables_(get_peft_model(model, config))  # type: ignore[return-value, arg-type]


def spare_tables_(model: Any) -> Any:
    """Let marker rows beside large tables replace their own activations and logits only; return the model.

    peft's layers write the rows into a copy of the table in each forward, and compute the gradient of all its rows. Parameters, and what
    is saved, are the same. Small tables keep peft's way, whose sums differ in their last bits.
    """
    from peft.tuners.trainable_tokens import TrainableTokensLayer

    layers: list[Any] = [layer for layer in model.modules() if isinstance(layer, TrainableTokensLayer)]
    for layer in layers:
        weight = layer.base_layer.weight
        if weight.numel() >= LARGE_TABLE:
            (rows,) = layer.token_indices.values()
            layer.register_buffer("marker_ids", torch.tensor(rows, device=weight.device), persistent=False)
            layer.forward_adapters = partial(_forward_rows, layer)
    return model


def _forward_rows(layer: Any, inputs: torch.Tensor, active: Sequence[str]) -> torch.Tensor:
    """Return what `layer.forward_adapters` of peft returns."""
    if layer.disable_adapters or layer.merged or not active:
        return type(layer).forward_adapters(layer, inputs, active)  # type: ignore[no-any-return]
    base, ids, rows = layer.base_layer, layer.marker_ids, layer.trainable_tokens_delta[active[0]]
    found: torch.Tensor = base(inputs)
    if isinstance(base, nn.Linear):
        bias = None if base.bias is None else base.bias[ids]
        return found.index_copy_(-1, ids, nn.functional.linear(inputs, rows.to(base.weight.dtype), bias).to(found.dtype))
    hits = inputs[..., None] == ids
    scale = layer._get_embed_scale()
    own = nn.functional.embedding(hits.int().argmax(dim=-1), rows if scale is None else rows * scale.to(rows.dtype))
    return torch.where(hits.any(dim=-1, keepdim=True), own.to(found.dtype), found)


def freeze_table_(model: PreTrainedModel, learning: Sequence[int]) -> None:
    """Prepare a model for full tuning: all weights are trained, of embedding table and output layer only the rows `learning`, if any.

    The other rows get no gradient, so that an optimizer without weight decay does not change them.
    """
    model.requires_grad_(True)
    for module in tables(model):
        weight = module.get_parameter("weight").requires_grad_(bool(learning))
        if learning:
            fixed = torch.ones(len(weight), 1, dtype=torch.bool).index_fill_(0, torch.tensor(learning), False)
            module.register_buffer("fixed_rows", fixed, persistent=False)
            weight.register_hook(lambda gradient, module=module: gradient.masked_fill(module.fixed_rows, 0))


def marker_rows_train(settings: LoraSettings, *, zero_stage: int) -> bool:
    """Whether the marker rows are trained in a run.

    Raises ValueError: asked for under ZeRO-3 on a CPU, where peft cannot train single rows of a split table; or words under ZeRO-3.
    """
    if settings.train_words and zero_stage == 3:
        raise ValueError("lora.train_words does not work with ZeRO-3, which splits the table; take ZeRO-2, or lora.train_words=false")
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


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Return the numbers of trainable weights and of all weights, also where ZeRO-3 has split them."""
    sizes = [(getattr(parameter, "ds_numel", parameter.numel()), parameter.requires_grad) for parameter in model.parameters()]
    return sum(size for size, learns in sizes if learns), sum(size for size, _ in sizes)


def is_marker_row(name: str, parameter: nn.Parameter) -> bool:
    """Whether a trainable parameter of that name holds marker rows: those of peft, or a table in full tuning."""
    return "trainable_tokens" in name or (parameter.ndim == 2 and name.endswith(("embed_tokens.weight", "lm_head.weight", "wte.weight")))
