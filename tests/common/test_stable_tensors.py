"""The same tensors and metadata give the same bytes, and the file is one that safetensors reads."""

import torch
from safetensors import safe_open
from safetensors.torch import save

from unicode.common.files import stable_bytes

METADATA = {name: f"{index} \u00fc \"quoted\" \\ \n" for index, name in enumerate("zyxwvutsrqponmlkji")}


def test_readable_and_equal_for_any_order_of_the_metadata(tmp_path):
    tensors = {"rows": torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), "ids": torch.arange(4)}
    content = stable_bytes(tensors, METADATA)
    assert content == stable_bytes(dict(reversed(tensors.items())), dict(reversed(METADATA.items())))
    assert len(content) == len(save(tensors, METADATA))
    (tmp_path / "file").write_bytes(content)
    with safe_open(tmp_path / "file", "pt") as file:
        assert file.metadata() == METADATA
        assert all(torch.equal(file.get_tensor(name), tensor) for name, tensor in tensors.items())
