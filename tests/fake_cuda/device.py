"""A GPU that is not there: tensors with device cuda and without values, and a mode that counts where the host would wait for the device."""

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

CUDA = torch.device("cuda", 0)
ASKING = {"aten._local_scalar_dense", "aten.item", "aten.is_nonzero", "aten.equal", "aten.bincount", "aten.nonzero", "aten.masked_select"}
ASKING |= {"aten._unique2", "aten.unique_consecutive", "aten.unique_dim", "aten.repeat_interleave", "aten.nonzero_static"}
INDEXING = {"aten.index", "aten.index_put", "aten.index_put_", "aten._index_put_impl_", "aten._unsafe_index"}
COPYING = {"aten._to_copy", "aten.copy_"}


def on_gpu(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.device.type == "cuda"


class HostSyncs(TorchDispatchMode):
    """Counts operations after which the host waits for the device: values asked for, sizes that depend on values, blocking copies.

    Enter it inside of `fake_gpu`. Values that are asked for are made up, so that a step goes on. `real`: the tensors are on the CPU and
    have values; every tensor counts as one of the device, and no copies are counted.
    """

    def __init__(self, *, real: bool = False) -> None:
        super().__init__()
        self.real, self.counts = real, Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        name = func._overloadpacket._qualified_op_name.replace("::", ".")
        on_device = any(map(on_gpu, (*args, *kwargs.values()))) or self.real
        masks = [index for index in args[1] if index is not None and index.dtype == torch.bool] if name in INDEXING else []
        if (name in ASKING or masks) and on_device:
            self._count(name.removeprefix("aten.") + " by a mask" * bool(masks))
            if not self.real:
                return self._made_up(name, func, args, kwargs)
        if name in COPYING and not self.real:
            target = args[0].device if name == "aten.copy_" else torch.device(kwargs.get("device") or args[0].device)
            source = args[1].device if name == "aten.copy_" else args[0].device
            blocking = not (kwargs.get("non_blocking") or (name == "aten.copy_" and len(args) > 2 and args[2]))
            if blocking and {source.type, target.type} == {"cpu", "cuda"}:
                self._count(f"blocking copy to the {'device' if target.type == 'cuda' else 'host'}")
        return func(*args, **kwargs)

    def _count(self, what: str) -> None:
        """Count an operation by what it is and by the line outside of torch that asked for it."""
        frame = sys._getframe(1)
        while frame.f_back is not None and any(part in frame.f_code.co_filename for part in ("/torch/", "fake_cuda/device.py")):
            frame = frame.f_back
        self.counts[f"{what}, {'/'.join(frame.f_code.co_filename.split('/')[-3:])}:{frame.f_lineno}"] += 1

    @staticmethod
    def _made_up(name: str, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        first = args[0]
        if name in ("aten._local_scalar_dense", "aten.item"):
            return True if first.dtype == torch.bool else 1.0 if first.dtype.is_floating_point else 1
        if name in ("aten.is_nonzero", "aten.equal"):
            return True
        if name == "aten.bincount":
            length = kwargs.get("minlength", args[2] if len(args) > 2 else 1)
            return first.new_zeros(max(1, length), dtype=torch.long)
        if name == "aten.nonzero":
            return first.new_zeros((1, first.ndim), dtype=torch.long)
        if name == "aten.index":
            mask = next(index for index in args[1] if index is not None and index.dtype == torch.bool)
            return first.new_zeros((1, *first.shape[mask.ndim :]))
        if name.startswith("aten.index_put"):
            return first
        raise AssertionError(f"{name} waits for the device, and this mode has no value to go on with")


def _fake_backward(loss: torch.Tensor, *_: Any, inputs: Any = None, **__: Any) -> None:
    """Give every leaf below a loss a gradient of zeros: the engine of autograd needs a real card."""
    assert loss.requires_grad and loss.numel() == 1, loss
    nodes, seen, leaves = [loss.grad_fn], set(), list(inputs or ())
    while nodes and not inputs:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.append(node.variable)
        nodes += [following for following, _ in node.next_functions]
    for leaf in leaves:
        gradient = torch.zeros_like(leaf)
        for hook in (leaf._backward_hooks or {}).values():
            gradient = hook(gradient)
        leaf.grad = gradient if leaf.grad is None else leaf.grad + gradient


@contextmanager
def fake_gpu() -> Iterator[FakeTensorMode]:
    """Let tensors be fake, autocast to bfloat16 work for device cuda, and backward passes give gradients of zeros."""
    with (
        FakeTensorMode(allow_non_fake_inputs=False) as mode,
        patch("torch.cuda.amp.common.amp_definitely_not_available", lambda: False),
        patch("torch.cuda.is_bf16_supported", lambda *_, **__: True),
        patch("torch.Tensor.backward", _fake_backward),
        patch("torch.cuda.manual_seed_all", lambda seed: None),
    ):
        yield mode


def to_gpu(mode: FakeTensorMode, value: Any) -> Any:
    """Return a tensor, or a module with its parameters and buffers replaced, on the fake device."""
    if isinstance(value, nn.Module):
        for module in value.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None and not isinstance(parameter, FakeTensor):
                    module._parameters[name] = _parameter(mode, parameter)
            for name, buffer in module._buffers.items():
                if buffer is not None and not isinstance(buffer, FakeTensor):
                    module._buffers[name] = to_gpu(mode, buffer)
        return value
    return value if isinstance(value, FakeTensor) else mode.from_tensor(value).to(CUDA).detach()


MADE: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}


def _parameter(mode: FakeTensorMode, parameter: nn.Parameter) -> nn.Parameter:
    """Return the fake of a parameter, the same for tied ones."""
    known = MADE.get(id(parameter))
    if known is None or known[0] is not parameter or known[1].fake_mode is not mode:
        fake = nn.Parameter(to_gpu(mode, parameter), requires_grad=parameter.requires_grad)
        fake.__dict__.update(parameter.__dict__)
        for hook in (parameter._backward_hooks or {}).values():
            fake.register_hook(hook)
        MADE[id(parameter)] = known = parameter, fake
    return known[1]


def fake_accelerator(*, bf16: bool) -> Any:
    """What the training of a tokenizer uses of accelerate's Accelerator, on one fake GPU."""
    return SimpleNamespace(
        device=CUDA,
        autocast=lambda: torch.autocast("cuda", torch.bfloat16, enabled=bf16),
        backward=lambda loss: loss.backward(),
        no_sync=lambda module: nullcontext(),
        prepare_model=lambda module: module,
    )


@contextmanager
def real_backward() -> Iterator[Counter[str]]:
    """Count in every backward pass on the CPU the operations that would let the host wait."""
    mode, backward = HostSyncs(real=True), torch.Tensor.backward

    def counted(loss: torch.Tensor, *args: Any, **options: Any) -> None:
        with mode:
            backward(loss, *args, **options)

    with patch("torch.Tensor.backward", counted):
        yield mode.counts
