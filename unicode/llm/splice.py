"""LLaVA's way of reading images: placeholders in `input_ids` are replaced by projected features of a vision tower.

An image stands in `input_ids` as n placeholder positions, so lengths, masks and batches are made as for images of ids, and no shape
changes on the way. A plain module around any causal language model of transformers (or a PEFT model of one): nothing is subclassed.
"""

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn

from unicode.llm.projector import load_projector_, save_projector
from unicode.llm.vision import Tower


class LlavaModel(nn.Module):
    """A language model that reads pictures through a tower and a projector.

    The tower is frozen and deliberately no submodule: it is in no state dict, no optimizer, and neither DDP, ZeRO nor a cast to
    bfloat16 reaches it; every rank keeps it whole and it follows the language model from device to device.

    Args:
        lm: a causal language model of transformers, or a PEFT model of one.
        tower: a frozen tower.
        projector: (..., tower.width) -> (..., D).
    """

    tower: Tower

    def __init__(self, lm: nn.Module, tower: Tower, projector: nn.Module) -> None:
        super().__init__()
        self.lm, self.projector = lm, projector
        self.__dict__["tower"] = tower  # around nn.Module's registration

    def embed(self, input_ids: Tensor, *, pixels: Tensor | None = None, image_at: Tensor | None = None) -> Tensor:
        """Return the embeddings of a batch, those of placeholders replaced by features.

        Every call runs the embedding layer and the projector once, whatever the batch holds: without images a black picture is read and
        none of its rows used, so that ranks with and without images do the same collective operations and never wait for each other.

        Args:
            input_ids: (B, T); any id of the vocabulary at the placeholders.
            pixels: (m, 3, S, S) uint8 or in [-1, 1], the pictures in the order of their places, or None.
            image_at: (m n) int64 positions in the flattened batch (b T + t), or None.

        Returns:
            (B, T, D) in the embedding layer's dtype.
        """
        embeddings = self.get_input_embeddings()(input_ids)
        tower = self.tower
        if tower.device != embeddings.device:
            tower.to(embeddings.device)
        if pixels is None or not len(pixels):
            pixels = torch.zeros(1, 3, tower.image_size, tower.image_size, dtype=torch.uint8, device=embeddings.device)
            image_at = torch.zeros(0, dtype=torch.long, device=embeddings.device)
        assert image_at is not None, "pixels without image_at"
        features = self.project(tower(pixels)).flatten(0, 1)
        assert len(image_at) in (0, len(features)), f"{len(image_at)} placeholders for {len(features)} features"
        used = features[: len(image_at)].to(embeddings.dtype)
        return embeddings.flatten(0, 1).index_copy(0, image_at, used).view_as(embeddings)

    def project(self, features: Tensor) -> Tensor:
        """(m, n, width) -> (m, n, D) through the projector, in its own dtype."""
        return self.projector(features.to(next(self.projector.parameters()).dtype))  # type: ignore[no-any-return]

    def forward(
        self,
        input_ids: Tensor | None = None,
        *,
        pixels: Tensor | None = None,
        image_at: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """Run the language model on a batch; returns what it returns (`loss` if labels are given, `logits`, `past_key_values`).

        Args:
            input_ids, pixels, image_at: see `embed`.
            inputs_embeds: (B, T, D) in place of the three.
            kwargs: for the language model: attention_mask, position_ids, labels, num_items_in_batch, ...
        """
        assert (input_ids is None) != (inputs_embeds is None), "give either input_ids or inputs_embeds"
        if inputs_embeds is None:
            assert input_ids is not None
            inputs_embeds = self.embed(input_ids, pixels=pixels, image_at=image_at)
        return self.lm(inputs_embeds=inputs_embeds, **kwargs)

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor | None = None,
        *,
        pixels: Tensor | None = None,
        image_at: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """As `generate` of transformers; what comes back are the new tokens only, (B, new), without the prompt."""
        if inputs_embeds is None:
            assert input_ids is not None
            inputs_embeds = self.embed(input_ids, pixels=pixels, image_at=image_at)
        return self.lm.generate(inputs_embeds=inputs_embeds, **kwargs)  # type: ignore[operator]

    # What Trainer and generation loops ask of a model is the language model's.

    @property
    def config(self) -> Any:
        """The language model's config."""
        return self.lm.config

    @property
    def device(self) -> torch.device:
        """Where the language model is."""
        return self.lm.device  # type: ignore[return-value]

    @property
    def dtype(self) -> torch.dtype:
        """Of the language model."""
        return self.lm.dtype  # type: ignore[return-value]

    def get_input_embeddings(self) -> nn.Module:
        """The language model's embedding layer."""
        return self.lm.get_input_embeddings()  # type: ignore[operator, no-any-return]

    def get_output_embeddings(self) -> nn.Module:
        """The language model's head."""
        return self.lm.get_output_embeddings()  # type: ignore[operator, no-any-return]

    def save_pretrained(self, folder: str | Path, *, state_dict: dict[str, Tensor] | None = None, **kwargs: Any) -> None:
        """Write projector.safetensors and what was trained of the language model: an adapter, all its weights, or nothing.

        Args:
            state_dict: weights of this module by their names here, gathered where ranks hold parts of them (ZeRO-3).
            kwargs: for `lm.save_pretrained`.
        """
        state = self.state_dict() if state_dict is None else state_dict
        if isinstance(self.lm, PeftModel) or any(parameter.requires_grad for parameter in self.lm.parameters()):
            self.lm.save_pretrained(folder, state_dict=part_of(state, "lm."), **kwargs)  # type: ignore[operator]
        save_projector(folder, part_of(state, "projector."))

    def load_trained_(self, folder: str | Path) -> None:
        """Take what `save_pretrained` wrote; a training goes on with it.

        Raises:
            FileNotFoundError, ValueError: there is no projector, or one that does not fit.
        """
        load_projector_(self.projector, folder)
        if isinstance(self.lm, PeftModel):
            self.lm.load_adapter(str(folder), self.lm.active_adapters[0], is_trainable=True)
        for file in sorted(Path(folder).glob("model*.safetensors")):
            self.lm.load_state_dict(load_file(file), strict=False)


def part_of(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with `prefix`, by the rest of their names."""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
