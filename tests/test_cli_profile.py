"""``gan-fast profile``: presets, networks and scripts of one's own, and what it says to wrong input."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from gan_fast.cli import main
from gan_fast.profiling import roofline

SCRIPT = """
import sys
import torch
import tiny_gan
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

G, D = tiny_gan.plain()
optimizers = [torch.optim.SGD(network.parameters(), lr=float(sys.argv[1])) for network in (D, G)]
for epoch in range(1000):
    for (real,) in DataLoader(TensorDataset(tiny_gan.images()), batch_size=4):
        for optimizer, sign in zip(optimizers, (1, -1)):
            optimizer.zero_grad()
            (sign * D(G(torch.randn(4, 4))).mean() + D(real).mean()).backward()
            optimizer.step()
"""


@pytest.fixture(autouse=True)
def one_roof(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measuring the machine takes longer than all else here."""
    monkeypatch.setattr(roofline, "measured", lambda device, threads: roofline.Roof(1e11, 1e10))


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_pair.py").write_text(
        "from tiny_gan import convolutional as pair\nnothing = 3\n"
        "def needs(x): pass\ndef single(): return pair()[0]\ndef odd(): return 1, 2\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "own_pair", raising=False)


def profile(*words: str) -> int:
    return main(["profile", "--device", "cpu", "--steps", "2", "--warmup", "1", *words])


def figures(*words: str) -> dict[str, Any]:
    """The JSON of a run that worked."""
    assert profile(*words, "--json", "out.json") == 0
    found: dict[str, Any] = json.loads(Path("out.json").read_text())
    return found


def test_a_pair_of_one_s_own_in_the_trainer(capsys: pytest.CaptureFixture[str]) -> None:
    found = figures("--model", "own_pair:pair", "--batch-size", "4", "--trace", "trace.json")
    output = capsys.readouterr().out
    assert "model own_pair:pair, batch size 4, precision fp32, loop gan_fast.Trainer" in output
    for words in ("phases: ", "layers, with", "operators", "work: ", "roof: ", "memory: ", "overhead of", "verdict"):
        assert f"\n{words}" in output
    assert sum(row["seconds"] for row in found["phases"]) == pytest.approx(found["wall"], rel=1e-6)
    assert {"data", "logging", "generator forward"} <= {row["phase"] for row in found["phases"]}
    assert {"generator.0", "discriminator.2"} <= {row["layer"] for row in found["layers"]}
    assert found["flops"] > 0 and found["counts"] == {"timed": 2, "bare": 2, "detail": 3, "counted": 1}
    assert set(found["overhead"]) == {"timing the phases", "layers and operators"}
    events = json.loads(Path("trace.json").read_text())["traceEvents"]
    assert "layer: generator.0" in {event.get("name") for event in events}
    assert {path.name for path in Path().iterdir()} - {"__pycache__"} == {"out.json", "own_pair.py", "trace.json"}
    ends = [stretch["begin"] + stretch["seconds"] for stretch in found["timeline"]]
    assert found["timeline"][0]["begin"] == 0 and {"data", "optimiser"} <= {s["phase"] for s in found["timeline"]}
    assert [stretch["begin"] for stretch in found["timeline"][1:]] == pytest.approx(ends[:-1], abs=1e-6)


def test_a_page_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    assert profile("--model", "own_pair:pair", "--batch-size", "4", "--report", "out.html") == 0
    assert "report: out.html" in capsys.readouterr().out
    text = Path("out.html").read_text(encoding="utf-8")
    assert "own_pair:pair" in text and "<td>generator.0</td>" in text and text.count("<svg") == 3


def test_the_plain_loop_and_what_accelerate_brings(capsys: pytest.CaptureFixture[str]) -> None:
    found = figures("--model", "own_pair:pair", "--batch-size", "4", "--plain")
    assert "loop plain PyTorch in a textbook loop" in capsys.readouterr().out
    assert any("accelerate(G, D) brings " in sentence for sentence in found["verdict"])
    assert any("accelerate(generator) would swap 2 layers" in sentence for sentence in found["verdict"])
    assert all("gan_fast::" not in row["operator"] for row in found["operators"])


def test_a_preset_under_autocast_with_data_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn")
    for plain in ([], ["--plain"]):
        found = figures("--batch-size", "2", "--data", "digits", "--precision", "bf16", *plain)
        assert {"generator.main.4", "discriminator.main.0"} <= {row["layer"] for row in found["layers"]}
        assert "data" in {row["phase"] for row in found["phases"]}


def test_a_script_of_one_s_own_runs_until_it_has_done_enough(capsys: pytest.CaptureFixture[str]) -> None:
    Path("loop.py").write_text(SCRIPT)
    found = figures("--script", "loop.py 0.01")
    assert found["counts"]["timed"] == found["counts"]["bare"] == 2
    assert {"data", "G forward", "D forward", "backward", "optimiser"} <= {row["phase"] for row in found["phases"]}
    assert "script loop.py 0.01" in capsys.readouterr().out


def test_a_script_that_ends_early(capsys: pytest.CaptureFixture[str]) -> None:
    Path("short.py").write_text("import sys\nsys.exit(0)\n")
    assert profile("--script", "short.py") == 0
    assert "no network was called inside the with block" in capsys.readouterr().out
    Path("failing.py").write_text("import sys\nsys.exit(3)\n")
    assert profile("--script", "failing.py") == 2
    assert "--script failing.py: it ended with status 3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "nowhere:pair"], "module 'nowhere' cannot be imported"),
        (["--model", "nowhere:pair"], "expected module:function"),
        (["--model", "own_pair:"], "expected module:function, a function that returns (generator, discriminator)"),
        (["--model", "own_pair:absent"], "module 'own_pair' has no 'absent'"),
        (["--model", "own_pair:nothing"], "'nothing' is a int, expected a function"),
        (["--model", "own_pair:needs"], "needs() failed"),
        (
            ["--model", "own_pair:single"],
            "expected a pair (generator, discriminator) of torch.nn.Module, got Sequential",
        ),
        (["--model", "own_pair:odd"], "expected a pair (generator, discriminator) of torch.nn.Module, got int, int"),
        (["--model", "dcgan82"], "dcgan"),
        (["--steps", "0"], "--steps must be at least 1, got 0"),
        (["--batch-size", "0"], "--batch-size must be at least 1, got 0"),
        (["--batch", "0"], "--batch-size must be at least 1, got 0"),
        (["--json", "no/out.json"], "--json no/out.json: there is no folder"),
        (["--report", "no/out.html"], "--report no/out.html: there is no folder"),
        (["--trace", "no/out.json"], "--trace no/out.json: there is no folder"),
        (["--script", "absent.py"], "there is no file 'absent.py'; expected a .py file"),
        (["--script", "own_pair.py", "--plain"], "--script and --plain"),
        (["--plain", "--loss", "minimax"], "--plain is the loop of tutorials"),
        (["--plain", "--model", "keras_mnist", "--batch-size", "2"], "built from gan_fast.nn's own layers"),
        (["--precision", "fp64", "--batch-size", "2"], "precision='fp64' is unknown"),
        (["--data", "minst", "--batch-size", "2"], "did you mean 'mnist'"),
    ],
)
def test_wrong_input_gets_one_sentence(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert profile(*options) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert not (tmp_path / "out.json").exists()


def test_threads_are_set() -> None:
    before = torch.get_num_threads()
    try:
        found = figures("--model", "own_pair:pair", "--batch-size", "2", "--threads", "1")
        assert found["machine"]["threads"] == torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
