"""gan-fast bench: what is measured, written, compared, and refused."""

from __future__ import annotations

import json
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
    assert machine["threads"] >= 1 and len(rows) == 12 and all(row.seconds and row.times for row in rows)
    assert main(["bench", "--compare", str(file), str(file)]) == 0
    assert "0 slower or wrong" in capsys.readouterr().out
    for row in rows:  # turns that are all alike
        row.times = [[row.seconds or 0] * 2]
    results.write(file, rows, machine)
    for row in rows:
        if row.program == "gan_fast":
            row.times = [[100 * time for time in visit] for visit in row.times or ()]
    slower = tmp_path / "b.json"
    results.write(slower, rows, machine)
    assert main(["bench", "--compare", str(file), str(slower)]) == 1


def test_it_goes_on_until_ratios_are_sure_or_the_time_is_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [tmp_path / f"{name}.json" for name in "ab"]
    assert main(["bench", *LAYER, "--within", "1e-9", "--budget", "1", "--json", str(files[0])]) == 0
    printed = capsys.readouterr().out
    assert "; 0 of 3 ratios known to within 1e-09 %" in printed
    assert main(["bench", *LAYER, "--json", str(files[1])]) == 0
    assert "ratios known" not in capsys.readouterr().out
    longer, shorter = (results.read(file)[1] for file in files)
    assert all(len(one.times or ()) >= 1 == len(other.times or ()) for one, other in zip(longer, shorter, strict=True))
    assert max(len(row.times or ()) for row in longer) > 1
    settings, findings = (json.loads(files[0].read_text(encoding="utf-8"))[key] for key in ("settings", "findings"))
    assert settings["budget"] == 1 and settings["within"] == pytest.approx(1e-11)
    assert [found["pass_"] for found in findings["ratios"]] == ["forward", "input_grad", "weight_grad"]
    for found in findings["ratios"]:
        assert found["interval"][0] <= found["value"] <= found["interval"][1] and found["pairs"] >= 4
        assert found["program"].startswith("gan_fast ") and found["against"].startswith("torch ")


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
        (["--model", "dcgan28", "--batchSize", "0"], "--batch-size must be at least 1"),
        (["--peers", "jaxx"], "expected some of compile, jax, tensorflow"),
        (["--rounds", "1"], "--rounds must be at least 2"),
        (["--within", "0"], "--within must be above 0"),
        (["steps", "--budget", "30"], "--budget 30: expected --within PERCENT too, or the preset quick"),
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
