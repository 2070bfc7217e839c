"""gan_fast.precision: what each word switches, for how long, and for whom."""

from __future__ import annotations

import contextlib
import importlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_gan import images, trainer
from torch import Tensor, nn

import gan_fast
from gan_fast import functional
from gan_fast.ops import _triton

module: Any = importlib.import_module("gan_fast.precision")  # gan_fast.precision itself is the function
F32, B16 = torch.float32, torch.bfloat16
X = torch.linspace(-1, 1, 2 * 3 * 8 * 8).view(2, 3, 8, 8)
WEIGHT = torch.linspace(-1, 1, 4 * 3 * 3 * 3).view(4, 3, 3, 3)
#: The convolution that users call, and ours.
CONVOLUTIONS: list[Callable[..., Tensor]] = [F.conv2d, functional.conv2d]


def settings() -> dict[str, Any]:
    """Everything of PyTorch that a word may switch."""
    names = [name for names in module._SWITCHES.values() for name in names]
    found: dict[str, Any] = {name: module._switch(name).fp32_precision for name in names}
    for name, (tell, _) in module._OLDER.items():
        try:
            found[name] = tell()
        except RuntimeError:
            found[name] = "out of step"
    found["autocast"] = torch.is_autocast_enabled("cpu"), torch.is_autocast_cache_enabled()
    return found


@pytest.fixture(autouse=True)
def untouched(settings_may_change: None) -> Iterator[None]:
    before = settings()
    yield
    assert settings() == before


@contextlib.contextmanager
def allowing(word: str) -> Iterator[None]:
    """PyTorch's own permission to round fp32, "medium" or "high"."""
    before = torch.get_float32_matmul_precision()
    switches = [module._switch(name) for name in ("cuda.matmul", "mkldnn.matmul")]
    newer = [switch.fp32_precision for switch in switches]
    torch.set_float32_matmul_precision(word)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
        for switch, value in zip(switches, newer, strict=True):
            switch.fp32_precision = value


# ---------------------------------------------------------------------------------------------------- what a word does


@pytest.mark.parametrize("conv", CONVOLUTIONS)
def test_bf16_is_autocast_and_gradients_stay_in_fp32(conv: Callable[..., Tensor]) -> None:
    weight = WEIGHT.clone().requires_grad_()
    with gan_fast.precision("bf16"):
        out = conv(X, weight)
        loss = functional.binary_cross_entropy_with_logits(out, 1.0)
    assert out.dtype == B16 and loss.dtype == F32
    with torch.autocast("cpu", B16):
        assert torch.equal(out, conv(X, weight))
    loss.backward()
    assert weight.grad is not None and weight.grad.dtype == F32
    assert conv(X, weight).dtype == F32


@pytest.mark.parametrize("conv", CONVOLUTIONS)
def test_blocks_nest_and_the_innermost_holds(conv: Callable[..., Tensor]) -> None:
    def dtype() -> torch.dtype:
        return conv(X, WEIGHT).dtype

    with gan_fast.precision("bf16"):
        with gan_fast.precision("fp32"):
            assert dtype() == F32
            with gan_fast.precision("bf16", "cpu"):
                assert dtype() == B16
            assert dtype() == F32
        assert dtype() == B16
    with torch.autocast("cpu", B16):
        with gan_fast.precision("fp32"):
            assert dtype() == F32
        assert dtype() == B16
    assert dtype() == F32


@pytest.mark.parametrize("word", ["fp32", "bf16"])
def test_tensors_keep_their_own_16_bits(word: str) -> None:
    with gan_fast.precision(word):
        assert functional.conv2d(X.to(B16), WEIGHT.to(B16)).dtype == B16


def test_it_decorates() -> None:
    @gan_fast.precision("bf16")
    def inner(x: Tensor, depth: int) -> list[torch.dtype]:
        """Its text."""
        found = [F.conv2d(x, WEIGHT).dtype]
        return found + (inner(x, depth - 1) if depth else []) + [F.conv2d(x, WEIGHT).dtype]

    assert inner.__name__ == "inner" and inner.__doc__ == "Its text."
    for _ in range(2):
        assert set(inner(X, 2)) == {B16}
        assert F.conv2d(X, WEIGHT).dtype == F32


@pytest.mark.parametrize("word", ["fp32", "bf16"])
def test_errors_inside_leave_nothing_behind(word: str) -> None:
    with allowing("medium"):
        before = settings()
        with pytest.raises(ZeroDivisionError), gan_fast.precision(word):
            assert settings() != before
            raise ZeroDivisionError
        assert settings() == before


def test_other_threads_see_nothing_of_it() -> None:
    found = []
    with gan_fast.precision("bf16"):
        thread = threading.Thread(target=lambda: found.append(F.conv2d(X, WEIGHT).dtype))
        thread.start()
        thread.join()
    assert found == [F32]


def test_parameters_that_change_inside_are_seen() -> None:
    """As an optimiser's step changes them. PyTorch's autocast would go on with its copy of the first ones."""
    weight = nn.Parameter(WEIGHT.clone())

    def change() -> tuple[Tensor, Tensor]:
        first = F.conv2d(X, weight).detach()
        with torch.no_grad():
            weight.mul_(2)
        return first, F.conv2d(X, weight).detach()

    with gan_fast.precision("bf16"):
        first, second = change()
    assert torch.equal(second, 2 * first) and second.any()
    with torch.autocast("cpu", B16):
        assert torch.equal(*change()), "this torch keeps no copies: the cache need not be off"


@pytest.mark.parametrize("around", [False, True])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_functions(backend: str, around: bool) -> None:
    def inside(x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        with gan_fast.precision("bf16"):
            y = functional.conv2d(x, weight)
            with gan_fast.precision("fp32"):
                z = functional.conv2d(x, weight)
        return y, z, functional.conv2d(x, weight)

    @gan_fast.precision("bf16")
    def decorated(x: Tensor, weight: Tensor) -> Tensor:
        return functional.conv2d(x, weight)

    torch.compiler.reset()
    with gan_fast.precision("bf16") if around else contextlib.nullcontext():
        outputs = torch.compile(inside, backend=backend, fullgraph=True)(X, WEIGHT)
        assert torch.compile(decorated, backend=backend, fullgraph=True)(X, WEIGHT).dtype == B16
    assert [out.dtype for out in outputs] == [B16, F32, B16 if around else F32]
    for ours, theirs in zip(outputs, inside(X, WEIGHT), strict=True):
        torch.testing.assert_close(ours.float(), theirs.float(), rtol=2**-7, atol=2**-7)


# ----------------------------------------------------------------------------------------------------- fp32's products


def test_fp32_takes_back_what_pytorch_was_allowed() -> None:
    with allowing("medium"):
        assert settings()["mkldnn.matmul"] == "bf16"
        for word in ("fp32", "bf16"):
            with gan_fast.precision(word):
                assert settings()["mkldnn.matmul"] in ("ieee", "none")
            assert settings()["mkldnn.matmul"] == "bf16"


@pytest.mark.parametrize("allowed", ["highest", "high", "medium"])
@pytest.mark.parametrize("word", ["fp32", "tf32", "bf16", "fp16"])
def test_tf32_is_allowed_by_its_own_word_only(word: str, allowed: str) -> None:
    """The switches exist without a device. torch.compile asks for the older ones: they are not out of step inside."""
    with allowing(allowed):
        before = settings()
        with module.float32_products(word, "cpu", "cuda"):
            inside = settings()
            rounding = _triton.precision(F32)
        assert settings() == before
    tf32 = word == "tf32"
    assert rounding == ("tf32" if tf32 else "ieee") and _triton.precision(B16) == "ieee"
    assert all((inside[name] == "tf32") == tf32 for name in module._SWITCHES["cuda"])
    assert all(inside[name] in ("ieee", "none") for name in module._SWITCHES["cpu"])
    assert inside["cudnn"] == tf32 and inside["matmul"] == ("high" if tf32 else "highest")


@pytest.mark.parametrize("word", ["fp32", "tf32"])
def test_the_newer_switches_alone_are_put_back_too(word: str) -> None:
    def put(value: str) -> None:
        torch.backends.cuda.matmul.fp32_precision = value
        torch.backends.mkldnn.conv.fp32_precision = {"tf32": "bf16"}.get(value, value)

    outside = settings()
    put("tf32")
    try:
        before = settings()
        assert before["matmul"] == "out of step"
        with module.float32_products(word, "cpu", "cuda"):
            assert settings()["mkldnn.conv"] == "ieee"
            assert settings()["cuda.matmul"] == {"fp32": "ieee", "tf32": "tf32"}[word]
        assert settings() == before
    finally:
        put("none")
        for name in ("cuda.matmul", "mkldnn.conv"):  # what earlier tests left, if that is not to follow
            if module._switch(name).fp32_precision != outside[name]:
                module._switch(name).fp32_precision = outside[name]


def test_a_switch_that_follows_the_one_above_it_goes_on_following() -> None:
    torch.backends.fp32_precision = "tf32"
    try:
        with module.float32_products("fp32", "cpu"):
            assert settings()["mkldnn.conv"] == "ieee"
        assert settings()["mkldnn.conv"] == "tf32"
    finally:
        torch.backends.fp32_precision = "none"
    assert settings()["mkldnn.conv"] == "none"


@pytest.mark.parametrize("first_leaves_first", [True, False])
def test_threads_may_leave_in_any_order(first_leaves_first: bool) -> None:
    """The switches are the process's: in the end they are as they were before the first came."""
    blocks = [
        module.float32_products("tf32", "cuda"),
        module.float32_products("fp32", "cpu", "cuda"),
    ]
    with allowing("medium"):
        before = settings()
        for block in blocks:
            block.__enter__()
        assert settings()["cuda.matmul"] == settings()["mkldnn.matmul"] == "ieee"
        first, second = blocks if first_leaves_first else blocks[::-1]
        first.__exit__(None, None, None)
        assert (settings()["cuda.matmul"] == "ieee") == first_leaves_first
        second.__exit__(None, None, None)
        assert settings() == before


# -------------------------------------------------------------------------------------------------------- other words


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("bf61", "precision='bf61' is unknown; did you mean 'bf16'.*known: fp32, bf16, tf32, fp16"),
        (None, "precision=None"),
    ],
)
def test_unknown_words(word: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        gan_fast.precision(word)


@pytest.mark.parametrize("word", ["tf32", "fp16"])
def test_words_of_cuda_are_refused_elsewhere(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for device in (None, "cpu", torch.device("cpu")):
        with pytest.raises(
            ValueError, match=f"precision='{word}' needs a CUDA device, not 'cpu'; expected 'fp32' or 'bf16'"
        ):
            gan_fast.precision(word, device)


def test_unknown_devices() -> None:
    with pytest.raises(ValueError, match=r"device must be 'cpu', 'cuda' or None.*got 'cdua'"):
        gan_fast.precision("fp32", "cdua")


# ------------------------------------------------------------------------------------------------------- who uses them


def test_the_trainer_s_fp32_is_fp32() -> None:
    """Whatever is around its steps."""
    subject = trainer("convolutional", precision="fp32")
    seen: list[Any] = []
    subject.discriminator.register_forward_hook(
        lambda _m, _a, out: seen.append((out.dtype, settings()["mkldnn.matmul"]))
    )
    with allowing("medium"), torch.autocast("cpu", B16):
        subject.train_step(images(4))
    assert seen and {(dtype, switch) for dtype, switch in seen} == {(F32, "ieee")}


@pytest.mark.parametrize(("word", "dtype"), [("fp32", None), ("bf16", B16), ("fp16", torch.float16), ("tf32", None)])
def test_a_word_s_own_dtype(word: str, dtype: torch.dtype | None) -> None:
    assert module.autocast_dtype(word) == dtype


def test_explain_sees_the_block() -> None:
    layer = gan_fast.nn.Conv2d(3, 4, 3)
    with gan_fast.precision("bf16"):
        inside = gan_fast.explain(layer)
        with torch.autocast("cpu", B16):
            assert inside == gan_fast.explain(layer)
