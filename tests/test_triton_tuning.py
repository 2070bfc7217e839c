"""`gan-fast tune` for Triton's kernels: every tile of a kernel's own list is checked and timed, and the fastest serves.

The interpreter's tensors count as a GPU's; the times are invented.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import triton_proof
from torch import Tensor

from gan_fast import backends, choice_table, functional, tuning
from gan_fast.ops import _triton, first_use, triton_tiles
from gan_fast.ops._triton import Tile
from gan_fast.precision import float32_products

__all__ = ["triton_proof"]  # imported for its conditions: triton, interpreted

IEEE = triton_tiles.TILES["ieee"]


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, settings_may_change: None) -> Iterator[None]:
    monkeypatch.setattr(backends, "GPU", "cpu")
    monkeypatch.setattr(first_use, "DEVICES", ["cpu"])
    monkeypatch.setattr(choice_table, "gpu", lambda index: {"device": "stand-in", "triton": "here"})
    monkeypatch.setattr(choice_table, "_on_gpu", lambda: choice_table._tuned_on_gpu(0))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setenv("GAN_FAST_CACHE", str(tmp_path))
    monkeypatch.delenv("GAN_FAST_TABLE", raising=False)
    first_use.forget()
    choice_table.forget()
    with float32_products("fp32", "cuda"):
        yield
    monkeypatch.undo()
    first_use.forget()
    choice_table.forget()


@pytest.fixture
def tiles(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """(kernel, rows of its tile, warps) of every launch with a matrix product."""
    found: list[tuple[str, int, int]] = []
    launch = _triton.launch

    def noting(kernel: Any, programs: int, device: Any, arguments: Any, constants: Any, warps: int, *rest: Any) -> None:
        if not _triton.is_recording() and {"BM", "BA"} & constants.keys():
            found.append((kernel.__name__, constants.get("BM", constants.get("BA")), warps))
        launch(kernel, programs, device, arguments, constants, warps, *rest)

    monkeypatch.setattr(_triton, "launch", noting)
    return found


def step() -> list[Tensor]:
    x = torch.ones(3, 16, 5, 5, requires_grad=True)
    w = torch.ones(17, 16, 3, 3, requires_grad=True)
    y = functional.conv2d(x, w, stride=2, padding=1, activation="tanh")
    return [y, *torch.autograd.grad(y.sum(), [x, w])]


def clock(seconds: dict[Tile | None, float], torch_seconds: float) -> Any:
    """Invented times by tile; programs that are not ours are PyTorch's."""

    def begin(run: Any, repeats: int) -> Callable[[], float]:
        ours = run.func is tuning._run
        return lambda: seconds[run.args[0]] if ours else torch_seconds

    return begin


def test_the_fastest_tile_serves_and_only_the_list_is_tried(tiles: list[tuple[str, int, int]], tmp_path: Path) -> None:
    calls = tuning.record(step)
    assert sorted(call.op for call in calls) == ["conv", "conv_transpose", "conv_weight_grad"] and tiles == []
    assert {call.backends for call in calls} == {("triton",)}
    exact = step()
    assert tiles == [], "nothing is measured yet"
    cells = tuning.measure(calls, 3, clock=clock({IEEE[0]: 3e-3, IEEE[1]: 1e-3}, 2e-3))
    tried = {kernel: {tile[1:] for tile in tiles if tile[0] == kernel} for kernel in ("gather_conv", "partial_sums")}
    assert tried == {"gather_conv": {(64, 8), (32, 4)}, "partial_sums": {(32, 8), (32, 4)}}
    assert [(cell.tile, cell.seconds) for cell in cells] == [(IEEE[1], {"triton": 1e-3, "torch": 2e-3})] * 3
    path = tuning.save(cells)
    assert path == tmp_path / "tuned" / "stand-in.json" and len(json.loads(path.read_text())["cells"]) == 3
    for fastest, warps in ((IEEE[1], 4), (IEEE[0], 8)):
        slower = IEEE[0] if fastest == IEEE[1] else IEEE[1]
        tuning.save(tuning.measure(calls, 3, clock=clock({fastest: 1e-3, slower: 3e-3}, 2e-3)))
        tiles.clear()
        for ours, right in zip(step(), exact, strict=True):
            torch.testing.assert_close(ours, right, rtol=1e-5, atol=1e-5)
        assert {kernel for kernel, *_ in tiles} == {"gather_conv", "partial_sums"}
        assert {tile[2] for tile in tiles} == {warps}


def test_pytorch_wins_where_it_is_faster_but_a_name_gets_the_fastest_tile(tiles: list[tuple[str, int, int]]) -> None:
    tuning.save(tuning.measure(tuning.record(step), 3, clock=clock({IEEE[0]: 3e-3, IEEE[1]: 2e-3}, 1e-3)))
    tiles.clear()
    step()
    assert tiles == []
    with backends.use_backend("triton"):
        step()
    assert {tile[2] for tile in tiles} == {IEEE[1].warps}


def test_a_tile_that_computes_wrong_numbers_is_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from gan_fast.ops.conv import triton as conv_module

    healthy = conv_module.conv

    def broken(*arguments: Any) -> Tensor:
        out = healthy(*arguments)
        if not _triton.is_recording() and _triton.forced_tile() is not None and _triton.forced_tile().warps == 4:
            out.view(-1)[-1] += 1000
        return out

    monkeypatch.setattr(conv_module, "conv", broken)
    calls = [call for call in tuning.record(step) if call.op == "conv"]
    (cell,) = tuning.measure(calls, 3, clock=clock({IEEE[0]: 3e-3, IEEE[1]: 1e-3}, 9e-3))
    assert (cell.tile, cell.seconds["triton"]) == (IEEE[0], 3e-3)
    assert caplog.text.count("gives wrong numbers") == 1


def test_kernels_without_a_matrix_product_have_no_tile() -> None:
    def elementwise() -> Tensor:
        return functional.bias_act(torch.ones(4, 8), torch.ones(8), activation="tanh")

    calls = tuning.record(elementwise)
    (cell,) = tuning.measure(calls, 3, clock=clock({None: 1e-3}, 2e-3))
    assert (cell.best, cell.tile) == ("triton", None)
    tuning.save([cell])
    assert backends.choose("bias_act", device="cpu", elements=32).backend == "triton"
