"""``gan-fast eval`` on a run of its own making, and what it does with bad arguments."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

import gan_fast
from gan_fast import data
from gan_fast.cli import eval as command
from gan_fast.cli import main
from gan_fast.metrics import classifier as classifier_module


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """One cache folder for the module, so that the digits' classifier is trained once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def own_cache(cache, monkeypatch):
    monkeypatch.setenv("GAN_FAST_CACHE", str(cache))
    monkeypatch.delenv("GAN_FAST_DATA", raising=False)
    # How good the classifier is has its own test; here it only has to exist.
    monkeypatch.setattr(classifier_module, "_MIN_STEPS", 20)


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A run of two steps on the digits."""
    torch.manual_seed(0)
    generator, discriminator = gan_fast.models.build("dcgan28", ngf=4, ndf=4)
    outdir = tmp_path_factory.mktemp("runs")
    trainer = gan_fast.Trainer(generator, discriminator, batch_size=8, latent_dim=100, outdir=str(outdir), device="cpu")
    trainer.fit("digits", steps=2)
    (folder,) = outdir.iterdir()
    return folder


def test_a_run_is_judged_and_written_down(run_folder, tmp_path, capsys):
    out = tmp_path / "figures.json"
    assert main(["eval", str(run_folder), "--n", "130", "--json", str(out)]) == 0
    printed = capsys.readouterr().out
    figures = json.loads(out.read_text())
    assert figures["run"] == str(run_folder) and figures["data"] == "digits" and figures["n"] == 130
    assert f"{figures['frechet_distance']:.3f}" in printed and figures["classifier_sha256"][:16] in printed
    assert "130 (seed 0)" in printed and "of at most 2.3026 nats" in printed
    assert sum(figures["class_counts"]) == 130

    trainer = gan_fast.Trainer.load(run_folder)
    expected = gan_fast.metrics.evaluate(trainer, "digits", n=130)
    assert {key: figures[key] for key in expected} == expected


def test_seed_and_checkpoint_folder(run_folder, tmp_path):
    (checkpoint,) = (run_folder / "checkpoints").glob("step_*")
    for name, arguments in {
        "a": [run_folder, "--seed", "1"],
        "b": [checkpoint, "--seed", "1"],
        "c": [run_folder],
    }.items():
        words = [str(a) for a in arguments]
        assert main(["eval", *words, "--n", "100", "--json", str(tmp_path / name)]) == 0
    a, b, c = (json.loads((tmp_path / name).read_text())["frechet_distance"] for name in "abc")
    assert a == b != c


def write_config(folder, value) -> None:
    (folder / "config.json").write_text(json.dumps({"data": value}))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"name": "mnist", "source": None}, ("mnist", None)),
        ({"name": "x", "source": "./x", "options": {"data_dir": "d"}}, ("./x", "d")),
        ("digits", ("digits", None)),
        (None, (None, None)),
    ],
)
def test_the_set_is_read_from_the_run(tmp_path, value, expected):
    write_config(tmp_path, value)
    assert command._trained_on(tmp_path) == expected
    deep = tmp_path / "checkpoints" / "step_00000001"
    deep.mkdir(parents=True)
    assert command._trained_on(deep) == expected


@pytest.fixture
def asked(monkeypatch):
    """What `evaluate` is called with, by a command that is cut off from trainer and metrics."""
    calls: list[dict] = []

    class Loads:
        @staticmethod
        def load(folder):
            return folder

    def evaluate(source, real, **options):
        calls.append({"source": source, "real": real, **options})
        raise data.DataError("enough")

    monkeypatch.setattr(gan_fast, "Trainer", Loads)
    monkeypatch.setattr("gan_fast.metrics.evaluate", evaluate)
    return calls


@pytest.mark.parametrize(
    ("arguments", "real", "data_dir"),
    [
        ([], "mnist", "where"),
        (["--data-dir", "here"], "mnist", "here"),
        (["--data", "mnist"], "mnist", "where"),
        (["--data", "digits"], "digits", None),
    ],
)
def test_data_dir_of_the_run_is_used_for_its_own_set_only(tmp_path, asked, arguments, real, data_dir):
    write_config(tmp_path, {"source": "mnist", "options": {"data_dir": "where"}})
    assert main(["eval", str(tmp_path), *arguments, "--no-download", "--n", "77", "--batch-size", "7"]) == 2
    (call,) = asked
    assert (call["real"], call["data_dir"], call["download"]) == (real, data_dir, False)
    assert (call["source"], call["n"], call["batch_size"], call["seed"]) == (tmp_path, 77, 7, 0)


def test_spellings_of_train_are_understood(tmp_path, asked):
    write_config(tmp_path, {"source": "mnist"})
    assert main(["eval", str(tmp_path), "--data_dir", "here", "--batch", "7", "--dataroot", "digits"]) == 2
    (call,) = asked
    assert (call["real"], call["data_dir"], call["batch_size"]) == ("digits", "here", 7)


def test_errors_are_one_sentence_and_status_two(run_folder, tmp_path, capsys):
    nameless = tmp_path / "nameless"
    shutil.copytree(run_folder, nameless)
    write_config(nameless, None)
    no_folder = tmp_path / "no" / "figures.json"
    cases = {
        (str(nameless),): "name the real set with --data",
        (str(tmp_path / "nowhere"), "--data", "digits"): "nowhere: there is no such folder; expected a run folder",
        (str(tmp_path), "--data", "digits"): "neither a run folder nor a checkpoint folder; expected one such as runs/",
        (str(run_folder.parent),): f"it holds the runs {run_folder.name}: name one of them",
        (str(run_folder), "--json", str(no_folder)): f"--json {no_folder}: there is no folder {no_folder.parent}",
        (str(run_folder), "--n", "9"): "n=9 samples, expected more than the 64",
        (str(run_folder), "--data", "minst"): "did you mean 'mnist'",
    }
    for arguments, words in cases.items():
        assert main(["eval", *arguments]) == 2
        error = capsys.readouterr().err
        assert words in error and "Traceback" not in error
    assert not no_folder.parent.exists()
    (nameless / "config.json").write_text("{half")
    assert main(["eval", str(nameless)]) == 2
    assert "config.json is damaged" in capsys.readouterr().err


def test_without_data_the_instructions_keep_their_lines(run_folder, capsys):
    assert main(["eval", str(run_folder), "--data", "mnist", "--no-download"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert any(line.strip().startswith("https://") and "train-images-idx3-ubyte.gz" in line for line in lines)
