"""The command line: train, resume, sample, and its errors, end to end on the bundled digits."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tiny_gan
import torch
from PIL import Image

from gan_fast import models
from gan_fast.cli import main
from gan_fast.training import Trainer

pytest.importorskip("sklearn", reason="the bundled digits come with scikit-learn (pip install 'gan-fast[data]')")

# A tiny dcgan28 for a few steps.
TINY = ["--data", "digits", "--model", "dcgan28", "--ngf", "2", "--ndf", "2", "--batch-size", "8", "--device", "cpu"]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Undo what main() does to logging and threads in this process."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    root = logging.getLogger("gan_fast")
    for handler in [handler for handler in root.handlers if handler.name == "cli"]:
        root.removeHandler(handler)
    for name in ("gan_fast", "gan_fast.accelerate"):
        logging.getLogger(name).setLevel(logging.NOTSET)


def train(outdir: Path, *more: str) -> int:
    return main(["train", *TINY, "--outdir", str(outdir), *more])


def test_train_then_sample(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path, "--name", "x", "--steps", "3", "--log-every", "1", "--threads", "1") == 0
    captured = capsys.readouterr()
    assert "reached step 3; 3 steps" in captured.out and f"run folder: {tmp_path / '00000-x'}" in captured.out
    assert "step 2/3" in captured.err and "img/s" in captured.err
    config = json.loads((tmp_path / "00000-x" / "config.json").read_text())
    assert config["data"]["name"] == "digits" and config["training"]["model_options"]["ngf"] == 2

    grid, arrays = tmp_path / "grid.png", tmp_path / "samples.npz"
    run = str(tmp_path / "00000-x")
    assert main(["sample", run, "--n", "6", "--columns", "3", "--out", str(grid), "--npz", str(arrays)]) == 0
    with Image.open(grid) as picture:
        assert picture.size == (3 * 30 + 2, 2 * 30 + 2)
    with np.load(arrays) as stored:
        samples = stored["samples"]
    assert samples.shape == (6, 1, 28, 28) and samples.dtype == np.float32 and np.abs(samples).max() <= 1
    assert "6 samples of step 3, seed 0" in capsys.readouterr().out


def test_resume_equals_an_undisturbed_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path, "--name", "whole", "--steps", "5") == 0
    assert train(tmp_path, "--name", "parts", "--steps", "2", "--resume", "auto") == 0
    assert train(tmp_path, "--name", "parts", "--steps", "4", "--continue_train") == 0
    # By path, everything comes from the run itself: data, model, sizes, and here a new length.
    parts = tmp_path / "00001-parts"
    assert main(["train", "--resume", str(parts), "--steps", "5", "--device", "cpu"]) == 0
    whole = tmp_path / "00000-whole" / "checkpoints" / "step_00000005"
    for name in ("generator.safetensors", "discriminator.safetensors"):
        assert (whole / name).read_bytes() == (parts / "checkpoints" / "step_00000005" / name).read_bytes()
    capsys.readouterr()
    assert main(["train", "--resume", str(parts), "--device", "cpu"]) == 0
    assert "already at step 5 of 5: nothing to do" in capsys.readouterr().out


def test_resume_with_another_model_lists_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not an error about the stored model's options, which the other one does not have."""
    assert train(tmp_path, "--name", "x", "--steps", "1") == 0
    run = str(tmp_path / "00000-x")
    assert main(["train", "--resume", run, "--steps", "2", "--model", "keras_mnist", "--device", "cpu"]) == 2
    assert "model: 'dcgan28' in the checkpoint, 'keras_mnist' now" in error_line(capsys)


def test_resume_with_other_settings_lists_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path, "--name", "x", "--steps", "1") == 0
    capsys.readouterr()
    assert train(tmp_path, "--name", "x", "--steps", "2", "--resume", "auto", "--lr", "0.001", "--seed", "4") == 2
    error = error_line(capsys)
    assert "g_lr: 0.0002 in the checkpoint, 0.001 now" in error and "seed: 0 in the checkpoint, 4 now" in error
    run = str(tmp_path / "00000-x")
    assert main(["train", "--resume", run, "--steps", "2", "--loss", "minimax"]) == 2
    assert "loss: 'bce' in the checkpoint, 'minimax' now" in error_line(capsys)
    assert main(["train", "--resume", run, "--steps", "2", "--loss", "minimax", "--allow-changes"]) == 0


def test_runs_of_python_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_gan.trainer(outdir=tmp_path, name="own").fit(tiny_gan.images(), steps=1)
    assert main(["train", "--resume", str(tmp_path / "00000-own"), "--steps", "2"]) == 2
    assert "networks of your own go on in Python" in error_line(capsys)
    networks = models.build("dcgan28", ngf=2, ndf=2)
    trainer = Trainer(*networks, batch_size=2, outdir=tmp_path, name="tensor", device="cpu")
    trainer.fit(torch.zeros(4, 1, 28, 28), steps=1)
    assert main(["train", "--resume", str(tmp_path / "00001-tensor"), "--steps", "2"]) == 2
    assert "data without a name; give it with --data" in error_line(capsys)


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of an error."""
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("gan-fast: error: ")]
    assert len(lines) == 1
    return lines[0]


def test_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path / "runs", "--dry-run", "--epochs", "2") == 0
    output = capsys.readouterr().out
    assert "dry run: nothing was written" in output and "one step" in output and "epochs         2" in output
    assert not (tmp_path / "runs").exists()


def test_a_graph_is_asked_for_by_name_and_kept_by_a_resume(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert train(tmp_path, "--name", "x", "--steps", "1", "--cuda-graph") == 0
    assert "cuda_graph=True needs a CUDA device" in caplog.text
    capsys.readouterr()
    assert main(["train", "--resume", str(tmp_path / "00000-x"), "--steps", "2", "--device", "cpu", "--dry-run"]) == 0
    assert "cuda_graph     True" in capsys.readouterr().out
    assert train(tmp_path, "--name", "x", "--steps", "2", "--resume", "auto") == 2
    assert "cuda_graph: True in the checkpoint, False now" in error_line(capsys)


def test_dry_run_looks_at_the_run_to_resume(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def everything() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    assert train(tmp_path, "--name", "x", "--steps", "2") == 0
    before = everything()
    run = str(tmp_path / "00000-x")
    capsys.readouterr()
    for place in (run, "auto"):
        assert train(tmp_path, "--name", "x", "--steps", "5", "--resume", place, "--dry-run") == 0
        assert f"resume         {run}, step 2" in capsys.readouterr().out
    for arguments, text in (
        (["--resume", run, "--lr", "0.1"], "g_lr: 0.0002 in the checkpoint, 0.1 now"),
        (["--resume", "auto", "--name", "x", "--seed", "3"], "seed: 0 in the checkpoint, 3 now"),
        (["--resume", run, "--ngf", "3"], "generator: "),
        (["--resume", str(tmp_path / "nowhere")], "there is no such folder"),
    ):
        assert train(tmp_path, *arguments, "--dry-run") == 2
        assert text in error_line(capsys)
    assert train(tmp_path, "--name", "y", "--resume", "auto", "--dry-run") == 0
    assert "resume         nothing to resume: a new run" in capsys.readouterr().out
    assert everything() == before
    damaged = next((tmp_path / "00000-x" / "checkpoints").rglob("generator.safetensors"))
    damaged.write_bytes(b"half")
    assert train(tmp_path, "--resume", run, "--dry-run") == 2
    assert "generator.safetensors is truncated or changed" in error_line(capsys)


def test_auto_names_the_run_that_differs_only_in_its_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path, "--steps", "1") == 0
    capsys.readouterr()
    assert train(tmp_path, "--steps", "1", "--resume", "auto", "--batch-size", "9") == 0
    error = capsys.readouterr().err
    assert "warning: resume: no run is called dcgan28-digits-b9, so a new one begins" in error
    assert "00000-dcgan28-digits-b8 trained the same model on the same data (batch_size: 8 in the check" in error


def test_names_from_other_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--dataroot", "digits", "--batch", "8", "--nz", "16", "--ngf", "2", "--ndf", "2", "--n_epochs", "1"]
    more = ["--glr", "1e-3", "--b1", "0.4", "--manualSeed", "3", "--loss", "vanilla", "--outf", str(tmp_path), "--amp"]
    assert main(["train", *arguments, *more, "--device", "cpu", "-n"]) == 0
    output = capsys.readouterr().out
    assert "'latent_dim': 16" in output and "precision      bf16" in output and "loss           bce" in output
    assert "g_lr           0.001" in output and "d_lr           0.0002" in output and "beta1          0.4" in output


def test_images_are_brought_to_the_model_s_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--data", "digits", "--model", "dcgan64", "--ngf", "2", "--ndf", "2", "--batch-size", "8", "-n"]
    assert main(["train", *arguments, "--device", "cpu"]) == 0
    assert "[3, 64, 64]" in capsys.readouterr().out


def test_until(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rule = "window=2,tolerance=9,patience=1"
    assert train(tmp_path, "--name", "x", "--until", rule, "--log-every", "2") == 0
    assert "converged at step 4" in capsys.readouterr().out
    assert main(["train", "--resume", str(tmp_path / "00000-x"), "--device", "cpu"]) == 0
    assert "already converged at step 4" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        (["--data", "digitz"], ["digits"]),
        (["--model", "dcgan32"], ["unknown model 'dcgan32'", "dcgan28"]),
        (["--loss", "bec"], ["--loss 'bec' is unknown", "'bce'"]),
        (["--precision", "bf61"], ["precision='bf61' is unknown", "'bf16'"]),
        (["--precision", "fp16"], ["needs a CUDA device"]),
        (["--batch-size", "5000"], ["batch_size=5000 is larger than the data set", "1498 samples"]),
        (["--steps", "0"], ["steps must be a positive integer, got 0"]),
        (["--steps", "1", "--epochs", "1"], ["give steps or epochs, not both"]),
        (["--until", "soon"], ["expected 'converged'"]),
        (["--lr", "-1"], ["error: --lr must be a positive number, got -1.0"]),
        (["--seed", "-1"], ["--seed must be at least 0"]),
        (["--threads", "0"], ["--threads must be at least 1"]),
        (["--name", "a/b"], ["name must be a plain folder name"]),
        (["--resume", "nowhere"], ["nowhere: there is no such folder"]),
        (["--channels", "0"], ["channels: got 0, expected a positive integer"]),
    ],
)
def test_errors_are_one_line(
    arguments: list[str], texts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path, *arguments) == 2
    error = error_line(capsys)
    for text in texts:
        assert text in error
    assert not list(tmp_path.iterdir()), "nothing is written for an error in the arguments"


def test_debug_keeps_the_traceback(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is unknown"):
        train(tmp_path, "--precision", "bf61", "--debug")


def test_sample_s_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", str(tmp_path / "nowhere")]) == 2
    assert "there is no such folder" in error_line(capsys)
    assert train(tmp_path, "--name", "x", "--steps", "1") == 0
    run = str(tmp_path / "00000-x")
    for arguments, text in (
        (["--n", "0"], "n must be a positive integer, got 0"),
        (["--columns", "0"], "--columns must be at least 1"),
        (["--out", str(tmp_path / "no" / "grid.png")], "cannot write the grid"),
    ):
        assert main(["sample", run, *arguments]) == 2
        assert text in error_line(capsys)


def test_help_lists_the_commands_but_not_the_demo(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(["--help"])
    assert done.value.code == 0
    output = capsys.readouterr().out
    for command in ("train", "sample", "eval", "bench", "tune", "profile", "doctor"):
        assert f"    {command} " in output
    assert "demo" not in output


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (
            ["trian"],
            "unknown command 'trian'; did you mean train? expected one of "
            "train, sample, eval, bench, tune, profile, doctor",
        ),
        (
            ["frobnicate"],
            "unknown command 'frobnicate'; expected one of train, sample, eval, bench, tune, profile, doctor",
        ),
        (["train", "--epoch-s", "3"], "unrecognized arguments: --epoch-s 3; did you mean --epochs? gan-fast train --h"),
        (["sample", "x", "--colums=3"], "unrecognized arguments: --colums=3; did you mean --columns?"),
        (["eval", "x", "--frobnicate"], "unrecognized arguments: --frobnicate; gan-fast eval --help lists the options"),
        (["--vrsion"], "unrecognized arguments: --vrsion; did you mean --version?"),
        ([], "the following arguments are required: COMMAND"),
    ],
)
def test_unknown_words_get_the_near_ones(words: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as done:
        main(words)
    error = capsys.readouterr().err
    assert done.value.code == 2 and f"gan-fast: error: {text}" in error
    assert "demo" not in error


def test_python_m_gan_fast_and_an_unknown_option() -> None:
    done = subprocess.run([sys.executable, "-m", "gan_fast", "train", "--epoch-s"], capture_output=True, text=True)
    assert done.returncode == 2 and "gan-fast: error: unrecognized" in done.stderr and "Traceback" not in done.stderr
