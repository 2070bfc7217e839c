"""Winograd's forms are tested by the cases named after them, and so only while those take them: speed decides."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from cases import CONV, CONV_TRANSPOSE, ConvCase
from checks import level_of, run
from conv_checks import check_orders
from native import LEVELS, kernels

from gan_fast.ops.registry import OPERATORS

CASES = [case for case in CONV + CONV_TRANSPOSE if case.name.startswith("winograd")]


@pytest.fixture(params=[level for level in LEVELS if level not in ("amx_bf16", "avx512_bf16")])
def module(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The compiled module, at a level without bf16 instructions, which have fewer forms."""
    with level_of(f"cpu:{request.param}", monkeypatch):
        yield kernels()


def tensors(case: ConvCase, dtype: torch.dtype) -> list[torch.Tensor | None]:
    """The case's input, weight and bias."""
    return [None if t is None else t.detach() for t in case.tensors(dtype)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.op}-{case.name}")
def test_cases_take_the_form_of_their_name(module: ModuleType, case: ConvCase, dtype: torch.dtype) -> None:
    x, weight, bias = tensors(case, dtype)
    assert x is not None and weight is not None
    module.begin_plan()
    run(case, x, weight, bias, "cpu")
    form = module.end_plan()["winograd"]
    if "three" in case.name:
        assert form == 3
    elif "large" in case.name:
        assert form == 4
    elif dtype == torch.float32:
        assert form == 2
    else:
        assert form in (2, 4)


def test_three_outputs_pay_below_two_megabytes_or_with_short_vectors(module: ModuleType) -> None:
    case = next(case for case in CASES if case.name == "winograd_three_k3s2")
    x, weight, bias = tensors(case, torch.float32)
    assert x is not None and weight is not None
    module.set_near_cache(2 << 20)
    module.begin_plan()
    run(case, x, weight, bias, "cpu")
    assert module.end_plan()["winograd"] == (0 if module.isa() == "avx512" else 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weight_gradients_of_the_cases_take_every_form(module: ModuleType, dtype: torch.dtype) -> None:
    forms = {}
    for case in CASES:
        x, weight, _ = tensors(case, dtype)
        assert x is not None and weight is not None
        y = torch.empty(case.output, dtype=dtype)
        last = weight.is_contiguous(memory_format=torch.channels_last)
        module.begin_plan()
        OPERATORS["conv_weight_grad"](
            x, y, list(weight.shape[2:]), *case.form[:4], case.transposed, False, None, "none", 0.01, last, "cpu"
        )
        forms[f"{case.op} {case.name}"] = module.end_plan()["winograd"]
    assert set(forms.values()) >= {2, 3, 4}, forms


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.op}-{case.name}")
def test_forms_and_chunks_of_two_megabytes(case: ConvCase, monkeypatch: pytest.MonkeyPatch) -> None:
    check_orders(case, "cpu:avx512+roomy", monkeypatch)
