"""PyTorch's own samples and error inputs for the functions that we replace, on backends auto, cpu and reference.

The list is torch.testing's, hundreds of calls that PyTorch tests itself with: every form of argument, odd strides, no
samples.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from checks import recorded
from native import kernels
from torch.testing._internal.common_methods_invocations import op_db

from gan_fast import functional, use_backend

NAMES = [
    *(f"conv{t}{d}d" for t in ("", "_transpose") for d in (1, 2, 3)),
    "batch_norm",
    "linear",
    "binary_cross_entropy_with_logits",
]
OPINFO = {info.name.removeprefix("nn.functional."): info for info in op_db if info.name.startswith("nn.functional.")}
BACKENDS = ("auto", "cpu", "reference")
#: There is no 3-D kernel; test_backends checks that asking for one raises.
SERVED = [(name, backend) for name in NAMES for backend in BACKENDS if not (name.endswith("3d") and backend == "cpu")]


def differentiate(out: torch.Tensor, inputs: list[torch.Tensor]) -> tuple[torch.Tensor | None, ...]:
    return torch.autograd.grad(out.sum(), inputs, allow_unused=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(("name", "backend"), SERVED)
def test_samples(name: str, backend: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    if backend == "cpu":
        kernels()
    info, ours = OPINFO[name], getattr(functional, name)
    count = 0
    for sample in info.sample_inputs("cpu", dtype, requires_grad=True):
        arguments: tuple[Any, ...] = (sample.input, *sample.args)
        tensors = [t for t in (*arguments, *sample.kwargs.values()) if isinstance(t, torch.Tensor) and t.requires_grad]
        theirs = info.op(*arguments, **sample.kwargs)
        with recorded(monkeypatch) as ran, use_backend(backend):
            mine = ours(*arguments, **sample.kwargs)
            gradients = differentiate(mine, tensors)
        what = f"{name} on {backend}: {sample}"
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-4 if dtype == torch.float32 else 1e-7, msg=what)
        expected = differentiate(theirs, tensors)
        tolerance = 1e-3 if dtype == torch.float32 else 1e-7
        torch.testing.assert_close(gradients, expected, rtol=1e-4, atol=tolerance, msg=what)
        if backend != "auto" and theirs.numel() and sample.input.numel():
            assert ran.backends() == {backend}, what
        count += 1
    assert count >= 3, f"{name}: only {count} samples"


@pytest.mark.parametrize(("name", "backend"), [(name, backend) for name in NAMES for backend in BACKENDS])
def test_error_inputs_are_refused(name: str, backend: str) -> None:
    if backend == "cpu":
        kernels()
    info, ours = OPINFO[name], getattr(functional, name)
    errors = list(info.error_inputs("cpu")) if info.error_inputs_func is not None else []
    for error in errors:
        sample = error.sample_input
        with use_backend(backend), pytest.raises(error.error_type, match=error.error_regex):
            ours(sample.input, *sample.args, **sample.kwargs)
    assert errors or name == "binary_cross_entropy_with_logits" or info.error_inputs_func is None


def test_the_list_has_error_inputs() -> None:
    """So that the test above cannot pass by having nothing to do."""
    assert sum(OPINFO[name].error_inputs_func is not None for name in NAMES) >= 3
