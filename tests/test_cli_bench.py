"""gan-fast bench: what is measured, written, compared, and refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from gan_fast.cli import bench, main
from gan_fast.suite import results, spec, steps

LAYER = ["--layer", "conv:3,4,k3,6x6,b1", "--rounds", "2"]


def test_a_layer_of_one_s_own_is_measured_written_and_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.json"
    assert main(["bench", *LAYER, "--json", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "level" in printed and "weight_grad" in printed and f"written to {file}" in printed
    machine, rows = results.read(file)
    before = [dataclasses.replace(row, quartiles=(row.seconds or 0, row.seconds or 0)) for row in rows]
    assert machine["threads"] >= 1 and len(rows) == 12 and all(row.seconds for row in rows)
    assert main(["bench", "--compare", str(file), str(file)]) == 0
    assert "0 slower or wrong" in capsys.readouterr().out
    slower = tmp_path / "b.json"
    for row in rows:
        row.trusted = True
        row.quartiles = (row.seconds or 0, row.seconds or 0)
        if row.program == "gan_fast":
            row.seconds = 100 * (row.seconds or 0)
    results.write(file, [dataclasses.replace(row, trusted=True) for row in before], machine)
    results.write(slower, rows, machine)
    assert main(["bench", "--compare", str(file), str(slower)]) == 1


def test_networks_of_one_s_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bench_networks.py").write_text(
        "from torch import nn\n"
        "def pair():\n"
        "    up = nn.ConvTranspose2d(3, 1, 4, 2, 1)\n"
        "    generator = nn.Sequential(nn.Linear(5, 48), nn.Unflatten(1, (3, 4, 4)), up, nn.Tanh())\n"
        "    down = nn.Conv2d(1, 4, 4, 2, 1)\n"
        "    discriminator = nn.Sequential(down, nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(64, 1))\n"
        "    return generator, discriminator\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    command = ["bench", "--model", "bench_networks:pair", "--latent", "5", "--batch-size", "2", "--rounds", "2"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "gan_fast.Trainer" in printed and steps.BASELINE in printed and "of PyTorch's best, by" in printed
    assert main([*command, "--image", "1x8x8"]) == 0
    assert main([*command, "--image", "1xbig"]) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--layer", "konv:1,1,k3,8x8"], "'konv' is no operator"),
        (["--model", "dcgan82"], "expected one of article"),
        (["--model", "math:gcd"], "--model math:gcd"),
        (["--model", "nowhere_at_all:pair"], "nowhere_at_all"),
        (["--model", "dcgan28", "--batch-size", "0"], "--batch-size must be at least 1"),
        (["--peers", "jaxx"], "expected some of compile, jax, tensorflow"),
        (["--rounds", "1"], "--rounds must be at least 2"),
        (["--family", "dcgan64"], "expected the preset layers or full"),
        (["layers", "--family", "dcgan65"], "family: got 'dcgan65', expected one of"),
        (["--compare", "nowhere.json", "nothing.json"], "nowhere.json"),
    ],
)
def test_wrong_input_is_told_what_was_expected(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *options]) == 2
    assert message in capsys.readouterr().err


def test_the_quick_preset_s_layers_exist() -> None:
    for text in bench.QUICK_LAYERS:
        assert min(spec.parse(text).output_size) > 1
    assert {name for name, _ in (*bench.QUICK_STEPS, *bench.FULL_STEPS)} <= set(steps.NETWORKS)
