"""The cell head: the language model's state before a cell of an image -> the ids of that cell, coarse to fine.

A *cell* is what stands at one place of the coarsest grid: a coarse code with the finer codes under it, or the codes of a residual
quantizer. With `output_mode: cells` the language model spends one position on a cell, and this depth transformer (Lee et al. 2022,
RQ-Transformer) writes its m ids. It has no table of its own: its inputs and its output matrix are rows of the language model's table.

    input 0        Linear(h)                      h: the state before the cell
    input k        Linear(E[id k])                id k: the k-th id of the cell, k = 1 ... m - 1
    logits k       Linear(x_k) . E[row_ids]^T     x_k: output at step k
"""

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from unicode.common.files import atomic_write
from unicode.ids.layout import Layout
from unicode.llm.card import Card

FILE = "cell_head.safetensors"
_WIDEST = 1024  # of a head whose width is not given


@dataclass
class CellSettings:
    """Size of the depth transformer that writes the ids of a cell."""

    layers: int = 2  # Transformer layers
    width: int = 0  # Width of the layers; 0: that of the language model, at most 1024
    heads: int = 0  # Attention heads; 0: about one for each 64 of the width

    def __post_init__(self) -> None:
        if self.layers < 1 or self.width < 0 or self.heads < 0:
            given = f"cells.layers is {self.layers}, width {self.width}, heads {self.heads}"
            raise ValueError(f"{given}; layers must be 1 or more, the others 0 or more")

    def resolved(self, hidden_size: int) -> "CellSettings":
        """Return the settings with a width and heads. ValueError: heads that do not divide the width."""
        width = self.width or min(hidden_size, _WIDEST)
        heads = self.heads or next(number for number in range(max(1, width // 64), 0, -1) if width % number == 0)
        if width % heads:
            raise ValueError(f"cells.width {width} is no multiple of cells.heads {heads}")
        return CellSettings(self.layers, width, heads)


class _Layer(nn.Module):
    """A pre-normalized transformer layer, causal over the steps of a cell."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.mlp_norm = nn.RMSNorm(width), nn.RMSNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor, past: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(n, j, W) -> the same, and the keys and values (2, n, h, steps so far, d). `past`: those of earlier steps; then j is 1."""
        q, *kv = rearrange(self.qkv(self.attention_norm(x)), "n m (three h d) -> three n h m d", three=3, h=self.heads)
        seen = torch.stack(kv) if past is None else torch.cat((past, torch.stack(kv)), dim=3)
        mixed = F.scaled_dot_product_attention(q, seen[0], seen[1], is_causal=past is None)
        x = x + self.out(rearrange(mixed, "n h m d -> n m (h d)"))
        return x + self.down(F.gelu(self.up(self.mlp_norm(x)))), seen


@dataclass(frozen=True)
class CellTables:
    """The rows of image ids as the layers of a head see them; made once, they save its products with whole rows."""

    inputs: Tensor  # (K, W) what enters the layers for each id
    outputs: Tensor  # (K, W) their products with what leaves the layers are the logits

    def logits(self, outputs: Tensor) -> Tensor:
        """What leaves the layers (n, W) -> (n, K) float32."""
        # For few rows MKL is several times as fast in this order, in which it does not copy the table.
        return torch.mm(self.outputs, outputs.T).T.float()


class CellHead(nn.Module):
    """A causal transformer over the m ids of a cell; its tables are rows of the language model's.

    `hidden_size`: D, width of the language model's state. `table_width`: E, width of the rows of the embedding table. `layout`: of the
    images; cells are runs of `cell_length` ids in its order. `row_ids`: (K,) int64 vocabulary ids that may stand in an image. Rows are
    given with each call: the module keeps none, so that they are those of the language model, in whatever type, on whatever device, or
    split by ZeRO-3. Raises ValueError: an order of ids in which a cell is no run.
    """

    def __init__(self, settings: CellSettings, *, hidden_size: int, table_width: int, layout: Layout, row_ids: Tensor) -> None:
        super().__init__()
        check_cells(layout)
        self.settings, self.layout, self.hidden_size = settings.resolved(hidden_size), layout, hidden_size
        self.cell_length = layout.cell_length
        width = self.settings.width
        self.from_state, self.from_row = nn.Linear(hidden_size, width), nn.Linear(table_width, width, bias=False)
        self.steps = nn.Parameter(torch.empty(self.cell_length, width))
        self.layers = nn.ModuleList(_Layer(width, self.settings.heads) for _ in range(self.settings.layers))
        self.norm, self.to_row = nn.RMSNorm(width), nn.Linear(width, table_width, bias=False)
        self.row_ids = nn.Buffer(row_ids.sort().values)  # (K,) int64; their places are the classes of the logits
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
        nn.init.zeros_(self.from_state.bias)
        nn.init.normal_(self.steps, std=0.02)

    def forward(self, states: Tensor, cells: Tensor) -> Tensor:
        """Return the query (n, m, E) of each step; its logits are its products with the rows of `row_ids`.

        `states`: (n, D), the language model's state before each cell. `cells`: (n, j, E) rows of the first j ids of each cell; j from 0 to
        m - 1, and then j + 1 steps are returned.
        """
        x = torch.cat((self.from_state(states)[:, None], self._enter(cells)), dim=1) + self.steps[: cells.shape[1] + 1]
        for layer in self.layers:
            x, _ = layer(x)
        return self.to_row(self.norm(x))

    def _enter(self, rows: Tensor) -> Tensor:
        """Rows of the table (..., E) -> what enters the layers, (..., W)."""
        # Rows of language models are small and of various lengths; normalized, they are what the first layer expects.
        return self.from_row(F.rms_norm(rows, rows.shape[-1:], eps=1e-12).to(self.steps.dtype))

    @torch.no_grad()
    def tables(self, rows: Tensor) -> CellTables:
        """Return what `sample` takes of `rows` (K, E), the rows of `row_ids` in the language model's table."""
        return CellTables(self._enter(rows), rows.to(self.steps.dtype) @ self.to_row.weight)

    @torch.no_grad()
    def sample(self, states: Tensor, tables: CellTables, *, choose: Callable[[Tensor, int], Tensor]) -> Tensor:
        """Write one cell: (n, m) int64 vocabulary ids.

        `states`: (R, D). `choose`: what leaves the layers at a step, (R, W), of which `tables` make logits, and the number of the step ->
        (n,) vocabulary ids; where R is 2 n (guidance), both halves go on with the same ids.
        """
        ids: list[Tensor] = []
        past: list[Tensor | None] = [None] * len(self.layers)
        x = self.from_state(states.to(self.steps.dtype))
        for step in range(self.cell_length):
            if step:
                found = tables.inputs[torch.searchsorted(self.row_ids, ids[-1].contiguous())]
                x = found.repeat(len(states) // len(found), 1)
            x = (x + self.steps[step])[:, None]
            for number, layer in enumerate(self.layers):
                x, past[number] = layer(x, past[number])
            ids.append(choose(self.norm(x)[:, 0], step))
        return torch.stack(ids, dim=1)

    def describe(self) -> dict[str, Any]:
        """Return what unicode.json keeps of the head: its shape."""
        return {**asdict(self.settings), "cell_length": self.cell_length, "rows": len(self.row_ids)}

    def fingerprint(self, base: str) -> str:
        """Return 16 hexadecimal digits of what the weights belong to. `base`: `card.fingerprint_base` of the model whose table it uses."""
        digest = hashlib.sha256(f"{base} {self.layout.describe()}".encode())
        digest.update(self.row_ids.cpu().numpy().data)
        return digest.hexdigest()[:16]


def save_cell_head(folder: str | Path, state: dict[str, Tensor], *, fingerprint: str) -> None:
    """Write the weights of a head, complete on the CPU, into a folder, with the fingerprint of its rows and layout."""
    with atomic_write(Path(folder) / FILE, "wb") as file:
        file.write(save({name: tensor.contiguous() for name, tensor in state.items()}, metadata={"fingerprint": fingerprint}))


def load_cell_head_(head: CellHead, folder: str | Path, *, fingerprint: str) -> None:
    """Fill a head from a folder. `fingerprint`: `CellHead.fingerprint` of the model that it shall belong to.

    Raises FileNotFoundError: the folder has none. Raises ValueError: it is damaged, of another shape, table or layout.
    """
    path = Path(folder) / FILE
    found, state = _read(path)
    if found != fingerprint:
        reason = f"was trained for another table, set of image ids or layout ({found}, and here it is {fingerprint})"
        raise ValueError(f"{path} {reason}; take the head that was saved with this model")
    try:
        head.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit the head that the card describes: {error}") from error


def open_cell_head(folder: str | Path, card: Card, lm: Any) -> CellHead:
    """Open the head that a card describes, on the CPU in float32, for the language model that was opened beside it.

    Raises FileNotFoundError: there is none. Raises ValueError: it is damaged, or card, layout and weights do not fit each other.
    """
    described, layout, (_, state) = card.cells, card.layout, _read(Path(folder) / FILE)
    assert described is not None and layout is not None, card
    sizes = {"hidden_size": lm.config.get_text_config().hidden_size, "table_width": lm.get_input_embeddings().weight.shape[1]}
    row_ids = state.get("row_ids", torch.empty(0, dtype=torch.int64))
    settings = CellSettings(*(described.get(one.name, 0) for one in fields(CellSettings)))
    head = CellHead(settings, layout=layout, row_ids=row_ids, **sizes)
    if (shape := head.describe()) != (expected := {name: described.get(name) for name in shape}):
        raise ValueError(f"{folder}: unicode.json describes a cell head {expected}, but {FILE} and the layout make it {shape}")
    load_cell_head_(head, folder, fingerprint=described.get("fingerprint", ""))
    return head


def _read(path: Path) -> tuple[str, dict[str, Tensor]]:
    """Return the fingerprint and the weights of a file. FileNotFoundError, ValueError: as `load_cell_head_`."""
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent} has no {FILE}, which draws with output_mode 'cells'; the copy is incomplete")
    try:
        with safe_open(path, "pt") as file:
            return (file.metadata() or {}).get("fingerprint", ""), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read ({error}); copy it again") from error


def check_cells(layout: Layout) -> None:
    """Raise ValueError for an order of ids in which the codes of a cell do not belong to one place."""
    if layout.order == "rows":
        reason = "output_mode is 'cells', for which the ids of a cell must belong to one place"
        convert = "write it with python -m unicode.run.convert_tokenizer SRC OUT --order nested"
        again = "then the ids with encode_images or import_ids --ckpt OUT"
        raise ValueError(f"{reason}: order 'nested' or 'depth', not the tokenizer's 'rows'; {convert}, {again}")
