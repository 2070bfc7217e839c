"""Run folders and checkpoint folders: what is in them, damage, full and read-only places."""

from __future__ import annotations

import builtins
import errno
import hashlib
import json
import os
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from PIL import Image
from tiny_gan import assert_same_state, images, networks, state_of, trainer
from torch import nn

from gan_fast.training import CheckpointError, OutputError, Trainer, files, pictures
from gan_fast.training.run_folder import RunFolder, load_checkpoint


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of 9 steps with checkpoints at 3, 6 and 9."""
    subject = trainer(outdir=tmp_path, name="x", save_every=3, sample_every=4, log_every=2)
    result = subject.fit(images(), steps=9)
    assert result.folder is not None
    return result.folder


def names(folder: Path) -> list[str]:
    return sorted(place.name for place in folder.iterdir())


def test_what_a_run_folder_holds(run: Path) -> None:
    assert run.name == "00000-x"
    assert names(run) == [
        "checkpoints", "config.json", "env.json", "latest", "loss_curves.png", "samples", "stats.jsonl",
    ]  # fmt: skip
    assert names(run / "samples") == [
        "fakes_000000.png", "fakes_000004.png", "fakes_000008.png", "fakes_000009.png", "reals.png",
    ]  # fmt: skip
    assert names(run / "checkpoints") == ["step_00000003", "step_00000006", "step_00000009"]
    assert (run / "latest").read_text() == "checkpoints/step_00000009\n"
    rows = [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4, 6, 8, 9]
    assert set(rows[0]) == {"step", "epoch", "d_loss", "g_loss", "d_real", "d_fake", "img_s", "seconds"}
    assert rows[-1]["partial"] is True and 0 < rows[0]["d_real"] < 1
    config = json.loads((run / "config.json").read_text())
    assert config["training"]["batch_size"] == 4 and config["training"]["model"] == "custom"
    assert config["run"]["save_every"] == 3 and config["goal"] == {"step": 9, "until": None}
    assert config["data"]["name"] == "tensor" and config["data"]["samples"] == 22
    (start,) = json.loads((run / "env.json").read_text())
    assert start["from_step"] == 0 and start["torch"] == str(torch.__version__) and "table_hash" in start


def test_what_a_checkpoint_holds(run: Path) -> None:
    folder = run / "checkpoints" / "step_00000006"
    wanted = ["config.json", "discriminator.safetensors", "generator.safetensors", "trainer_state.pt"]
    assert names(folder) == sorted([*wanted, "manifest.json"])
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["step"] == 6 and sorted(manifest["files"]) == wanted
    for name, entry in manifest["files"].items():
        data = (folder / name).read_bytes()
        assert entry == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    state = torch.load(folder / "trainer_state.pt", weights_only=True)
    assert state["step"] == 6 and {"g_optimizer", "d_optimizer", "latent_generator", "random", "feed"} <= set(state)
    stored = safetensors.torch.load_file(folder / "generator.safetensors")
    assert {name: value.shape for name, value in stored.items()} == {
        name: value.shape for name, value in networks()[0].state_dict().items()
    }


def test_run_numbers_go_up(tmp_path: Path) -> None:
    (tmp_path / "00007-old").mkdir()
    (tmp_path / "notes").mkdir()
    (tmp_path / "00009-file").write_text("not a folder")
    assert RunFolder.create(tmp_path, "new").path.name == "00008-new"
    assert RunFolder.create(tmp_path, "new").path.name == "00009-new"


def test_default_name(tmp_path: Path) -> None:
    assert (trainer(outdir=tmp_path).fit(images(), steps=1).folder or tmp_path).name == "00000-sequential-tensor-b4"


def test_keep_last(tmp_path: Path) -> None:
    trainer(outdir=tmp_path, name="x", save_every=1, keep_last=2).fit(images(), steps=5)
    assert names(tmp_path / "00000-x" / "checkpoints") == ["step_00000004", "step_00000005"]


def test_reals_are_the_first_batch(run: Path) -> None:
    with Image.open(run / "samples" / "reals.png") as picture:
        assert picture.mode == "L" and picture.size == (2 * 6 + 2, 2 * 6 + 2)


@pytest.mark.parametrize("channels", [1, 3])
def test_grid(channels: int) -> None:
    batch = torch.stack([torch.full((channels, 2, 3), value) for value in (-1.0, 0.0, 1.0, 5.0, float("nan"))])
    picture = pictures.grid(batch, columns=3)
    assert picture.size == (3 * 5 + 2, 2 * 4 + 2)
    pixel = [picture.getpixel(place) for place in ((2, 2), (7, 2), (12, 2), (2, 6), (7, 6), (12, 6))]
    assert pixel == [(value,) * 3 if channels == 3 else value for value in (0, 128, 255, 255, 128, 0)]
    with pytest.raises(ValueError, match="images of shape"):
        pictures.grid(batch[:, :, 0])


def test_samples_that_are_no_pictures(tmp_path: Path) -> None:
    generator = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Unflatten(1, (2, 8)))
    discriminator = nn.Sequential(nn.Flatten(), nn.Linear(16, 1))
    subject = Trainer(generator, discriminator, batch_size=4, outdir=tmp_path, name="x", device="cpu")
    subject.fit(torch.rand(8, 2, 8) * 2 - 1, steps=2)
    assert names(tmp_path / "00000-x" / "samples") == []


def test_without_matplotlib_a_line_says_so(tmp_path: Path, monkeypatch: Any, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with caplog.at_level("INFO", logger="gan_fast"):
        trainer(outdir=tmp_path, name="x").fit(images(), steps=2)
    assert not (tmp_path / "00000-x" / "loss_curves.png").exists()
    assert sum("no loss curves were drawn" in record.message for record in caplog.records) == 1


def test_tensorboard_gets_every_line(tmp_path: Path, monkeypatch: Any) -> None:
    scalars: list[tuple[str, float, int]] = []
    opened: list[dict[str, Any]] = []

    class Writer:
        def __init__(self, **options: Any) -> None:
            opened.append(options)

        def add_scalar(self, name: str, value: float, step: int) -> None:
            scalars.append((name, value, step))

        def close(self) -> None:
            opened.append({"closed": True})

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=Writer))
    trainer(outdir=tmp_path, name="x", log_every=2).fit(images(), steps=4)
    assert opened == [{"log_dir": str(tmp_path / "00000-x"), "purge_step": 1}, {"closed": True}]
    assert {(name, step) for name, _, step in scalars} == {
        (name, step) for name in ("epoch", "d_loss", "g_loss", "d_real", "d_fake", "img_s") for step in (2, 4)
    }


# --------------------------------------------------------------------------------------------------------- damage


def damage(path: Path, how: str) -> None:
    data = path.read_bytes()
    if how == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif how == "changed":
        middle = len(data) // 2
        path.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
    else:
        path.unlink()


FILES = ("generator.safetensors", "discriminator.safetensors", "trainer_state.pt", "config.json", "manifest.json")


@pytest.mark.parametrize("how", ["truncated", "changed", "missing"])
@pytest.mark.parametrize("name", FILES)
def test_damage_is_named_and_the_last_good_checkpoint_used(
    run: Path, name: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    newest = run / "checkpoints" / "step_00000009"
    if name == "manifest.json" and how == "changed":
        text = (newest / name).read_text()
        (newest / name).write_text(text.replace('"sha256": "', '"sha256": "0'))
    else:
        damage(newest / name, how)
    with pytest.raises(CheckpointError, match="step_00000009"):
        Trainer.load(newest, *networks())
    loaded = Trainer.load(run, *networks())
    assert loaded.step == 6
    assert "step_00000009" in caplog.text and "last good checkpoint" in caplog.text
    if name != "manifest.json":
        with pytest.raises(CheckpointError, match=name):
            Trainer.load(newest, *networks())


def test_all_checkpoints_damaged(run: Path) -> None:
    for folder in (run / "checkpoints").iterdir():
        damage(folder / "trainer_state.pt", "truncated")
    with pytest.raises(CheckpointError, match=r"no good checkpoint: .*step_00000009.*step_00000006.*step_00000003"):
        Trainer.load(run, *networks())


def test_pointer_damaged_or_behind(run: Path) -> None:
    (run / "latest").write_bytes(b"\xff\x00")
    assert Trainer.load(run, *networks()).step == 9
    (run / "latest").unlink()
    assert Trainer.load(run, *networks()).step == 9
    (run / "latest").write_text("checkpoints/step_00000006\n")  # as after a kill between the folder and the pointer
    assert Trainer.load(run, *networks()).step == 6
    damage(run / "checkpoints" / "step_00000006" / "config.json", "missing")
    assert Trainer.load(run, *networks()).step == 3, "older ones come before those that the pointer never reached"


def test_going_on_from_a_middle_checkpoint(run: Path) -> None:
    whole = Trainer.load(run, *networks())
    loaded = Trainer.load(run / "checkpoints" / "step_00000003", *networks())
    assert loaded.step == 3 and loaded.run_folder == run
    loaded.fit(images(), steps=6)
    assert_same_state(state_of(whole), {**state_of(loaded), "feed": state_of(whole)["feed"]})
    rows = [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4, 6, 8, 9], "cut back to step 3, then written again"


def test_places_that_are_no_runs(tmp_path: Path, run: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere: there is no such folder"):
        Trainer.load(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="neither a run folder nor a checkpoint folder"):
        Trainer.load(tmp_path / "empty")
    with pytest.raises(CheckpointError, match="it holds the runs 00000-x: name one of them"):
        Trainer.load(run.parent)
    fresh = RunFolder.create(tmp_path, "fresh")
    fresh.prepare(0)
    with pytest.raises(CheckpointError, match="has no checkpoint yet"):
        Trainer.load(fresh.path)


def test_a_checkpoint_of_the_future(run: Path) -> None:
    manifest = run / "checkpoints" / "step_00000009" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(CheckpointError, match=r"format 2; this version of gan_fast reads up to 1"):
        Trainer.load(manifest.parent, *networks())


def test_leftovers_are_ignored_and_cleared(run: Path) -> None:
    (run / "checkpoints" / ".tmp-step_00000012-1234abcd").mkdir()
    (run / "checkpoints" / ".tmp-step_00000012-1234abcd" / "generator.safetensors").write_text("half")
    (run / ".tmp-latest-1234abcd").write_text("half")
    with open(run / "stats.jsonl", "a") as file:
        file.write('{"step": 10, "d_lo')
    loaded = Trainer.load(run, *networks())
    loaded.fit(images(), steps=1)
    assert names(run / "checkpoints")[0] == "step_00000003" and not list(run.glob(".tmp*"))
    assert [row["step"] for row in RunFolder(run).stats.rows()] == [2, 4, 6, 8, 10]


def test_saving_over_a_checkpoint_and_its_half_done_form(tmp_path: Path) -> None:
    subject = trainer()
    subject.save(tmp_path / "c")
    subject.train_step(images(4))
    subject.save(tmp_path / "c")
    assert Trainer.load(tmp_path / "c", *networks()).step == 1
    os.rename(tmp_path / "c", tmp_path / ".old-c")  # as a kill between the two renames leaves it
    assert Trainer.load(tmp_path / "c", *networks()).step == 1
    subject.save(tmp_path / "c")
    assert names(tmp_path) == ["c"]


def test_a_folder_with_other_contents_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").write_text("years of work")
    with pytest.raises(CheckpointError, match="is not empty and is no checkpoint; it is left alone"):
        trainer().save(tmp_path / "thesis")
    assert names(tmp_path / "thesis") == ["chapter1.txt"]


def test_state_that_could_not_be_read_back_is_refused(tmp_path: Path) -> None:
    subject = trainer()
    subject.seconds = {1, 2}  # type: ignore[assignment]  # the simplest foreign value
    with pytest.raises(TypeError, match=r"state\['seconds'\] is a set"):
        subject.save(tmp_path / "c")
    assert names(tmp_path) == []


def test_tied_and_strided_parameters_survive(tmp_path: Path) -> None:
    def make() -> tuple[nn.Module, nn.Module]:
        generator, discriminator = networks("convolutional")
        generator.to(memory_format=torch.channels_last)
        tied = nn.Linear(1, 1)
        discriminator.add_module("3", nn.Sequential(nn.Flatten(), tied))
        discriminator.add_module("4", nn.Sequential(tied))
        return generator, discriminator

    subject = Trainer(*make(), batch_size=4, outdir=None, device="cpu")
    subject.train_step(images(4))
    subject.save(tmp_path / "c")
    loaded = Trainer.load(tmp_path / "c", *make())
    assert_same_state(state_of(subject), state_of(loaded))


# ------------------------------------------------------------------------------------- places that cannot be written


@pytest.fixture
def full_disk(monkeypatch: Any) -> Iterator[Any]:
    """A function that lets the writing of files with a given ending fail as on a full disk, half-way."""
    real_open = builtins.open

    class Full:
        def __init__(self, file: Any) -> None:
            self.file = file

        def write(self, data: bytes) -> int:
            self.file.write(data[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *details: object) -> None:
            self.file.close()

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

    def fill(ending: str) -> None:
        def limited(path: Any, mode: str = "r", *args: Any, **more: Any) -> Any:
            opened = real_open(path, mode, *args, **more)
            writes = any(letter in mode for letter in "wax+")
            return Full(opened) if writes and str(path).endswith(ending) else opened

        monkeypatch.setattr(files, "open", limited, raising=False)
        monkeypatch.setattr("gan_fast.training.statistics.open", limited, raising=False)

    yield fill


def test_full_disk_during_a_checkpoint(tmp_path: Path, full_disk: Any, monkeypatch: Any) -> None:
    subject = trainer(outdir=tmp_path, name="x", save_every=3, log_every=2)
    subject.fit(images(), steps=3)
    full_disk("trainer_state.pt")
    with pytest.raises(OutputError, match=r"a checkpoint to .*step_00000006: No space left on device\. .*step 6"):
        subject.fit(images(), steps=6)
    assert subject.step == 6
    run = tmp_path / "00000-x"
    assert names(run / "checkpoints") == ["step_00000003"], "what was begun gives its room back"
    assert Trainer.load(run, *networks()).step == 3
    monkeypatch.undo()
    subject.save(tmp_path / "rescue")
    subject.fit(images(), steps=3)
    whole = trainer()
    whole.fit(images(), steps=9)
    assert_same_state({**state_of(whole), "losses": None}, {**state_of(subject), "losses": None})


def test_full_disk_during_statistics(tmp_path: Path, full_disk: Any) -> None:
    subject = trainer(outdir=tmp_path, name="x", log_every=2)
    full_disk("stats.jsonl")
    with pytest.raises(OutputError, match=r"cannot write stats.jsonl .*No space left on device"):
        subject.fit(images(), steps=3)
    assert subject.step == 2


def test_output_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    subject = trainer(outdir=tmp_path / "runs")
    with pytest.raises(OutputError, match=r"cannot write a run folder to .*runs: .* Give another outdir"):
        subject.fit(images(), steps=1)
    assert subject.step == 0
    with pytest.raises(OutputError, match="cannot write a checkpoint to"):
        subject.save(tmp_path / "runs" / "c")
    (tmp_path / "runs").unlink()
    subject.fit(images(), steps=3)
    whole = trainer()
    whole.fit(images(), steps=3)
    assert_same_state(state_of(whole), state_of(subject))


def test_read_only_output_folder(tmp_path: Path, monkeypatch: Any) -> None:
    """Simulated, because the superuser may write to folders without the write bit."""

    def refuse(self: Path, *args: Any, **more: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(self))

    subject = trainer(outdir=tmp_path / "runs")
    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(OutputError, match="Read-only file system") as caught:
        subject.fit(images(), steps=1)
    assert caught.value.errno == errno.EROFS and subject.step == 0


def test_nothing_is_written_before_fit_or_save(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    subject = trainer(outdir="runs")
    subject.train_step(images(4))
    subject.sample(2)
    assert not list(tmp_path.iterdir())


def test_interrupt_finishes_the_step_and_saves(tmp_path: Path) -> None:
    import signal

    class Interrupted(Trainer):
        def train_step(self, *args: Any, **more: Any) -> Any:
            if self.step == 4:
                signal.raise_signal(signal.SIGINT)
            return super().train_step(*args, **more)

    subject = Interrupted(*networks(), batch_size=4, outdir=tmp_path, name="x", device="cpu")
    with pytest.raises(KeyboardInterrupt, match="interrupted at step 5"):
        subject.fit(images(), steps=20)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    found, _ = load_checkpoint(tmp_path / "00000-x")
    assert found.step == 5
