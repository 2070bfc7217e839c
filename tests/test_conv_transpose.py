"""gan_fast::conv_transpose on every backend and instruction-set level."""

from __future__ import annotations

import conv_checks
import pytest
from cases import CONV_TRANSPOSE, ConvCase
from checks import BFLOAT16_BACKENDS, CONVOLUTION_BACKENDS, CONVOLUTION_REGISTERED
from conv_checks import ACTIVATIONS, small

all_cases = pytest.mark.parametrize("case", CONV_TRANSPOSE, ids=lambda case: case.name)
small_cases = pytest.mark.parametrize("case", small(CONV_TRANSPOSE), ids=lambda case: case.name)
all_backends = pytest.mark.parametrize("backend", CONVOLUTION_BACKENDS)
registered = pytest.mark.parametrize("backend", CONVOLUTION_REGISTERED)


@all_backends
@all_cases
def test_value_and_two_derivatives(case: ConvCase, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    conv_checks.check_orders(case, backend, monkeypatch)


@pytest.mark.parametrize("backend", BFLOAT16_BACKENDS)
@all_cases
def test_bfloat16(case: ConvCase, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    conv_checks.check_bfloat16(case, backend, monkeypatch)


@all_backends
def test_random_geometry(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    conv_checks.random_geometries(True, backend, monkeypatch, examples=20)


@pytest.mark.slow
@all_backends
def test_many_random_geometries(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    conv_checks.random_geometries(True, backend, monkeypatch, examples=400)


@pytest.mark.parametrize("backend", ["cpu:amx_bf16", "cpu:portable+matrix"])
def test_random_geometry_in_bfloat16(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    conv_checks.random_bfloat16(True, backend, monkeypatch, 40)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["cpu:amx_bf16", "cpu:portable+matrix"])
def test_many_random_geometries_in_bfloat16(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    conv_checks.random_bfloat16(True, backend, monkeypatch, 1000)


@registered
@pytest.mark.parametrize("prologue", ACTIVATIONS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradcheck(activation: str, prologue: str, backend: str) -> None:
    conv_checks.check_gradients(CONV_TRANSPOSE, activation, prologue, backend)


@all_cases
def test_strides_do_not_depend_on_the_backend(case: ConvCase, monkeypatch: pytest.MonkeyPatch) -> None:
    conv_checks.check_layouts(case, monkeypatch)


@registered
@small_cases
def test_opcheck(case: ConvCase, backend: str) -> None:
    conv_checks.check_opcheck(case, backend)


@all_backends
@small_cases
def test_huge_denormal_nan_and_infinity(case: ConvCase, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    conv_checks.check_special_values(case, backend, monkeypatch)


@registered
@small_cases
def test_no_samples(case: ConvCase, backend: str) -> None:
    conv_checks.check_empty_batch(case, backend)


@pytest.mark.parametrize("case", conv_checks.threaded(CONV_TRANSPOSE), ids=lambda case: case.name)
def test_threads_do_not_change_a_bit(case: ConvCase, monkeypatch: pytest.MonkeyPatch) -> None:
    conv_checks.check_threads(case, monkeypatch)


@pytest.mark.parametrize("index", [0, -1])
def test_a_kernel_broken_on_purpose_is_found(index: int, monkeypatch: pytest.MonkeyPatch) -> None:
    conv_checks.check_mutation(CONV_TRANSPOSE, index, monkeypatch)


@pytest.mark.parametrize(("change", "message"), conv_checks.BAD_ARGUMENTS)
def test_bad_arguments_are_refused(change: dict[str, object], message: str) -> None:
    conv_checks.check_refusal(CONV_TRANSPOSE, change, message)
