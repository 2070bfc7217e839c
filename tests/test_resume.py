"""Exact resume: N + M steps equal N steps, a stop, a resume, and M steps, bit for bit on the CPU."""

from __future__ import annotations

import copy
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_gan import SHAPE, assert_same_state, images, networks, state_of, trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from gan_fast import models
from gan_fast.training import ConfigMismatchError, Trainer, pictures
from gan_fast.training.statistics import StatsFile

TIMES = ("img_s", "seconds")


@pytest.fixture(autouse=True, scope="module")
def no_curves() -> Iterator[None]:
    """Drawing the loss curves would take longer than the trainings here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "save_loss_curves", lambda rows, path: False)
        yield


def seed_everything(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def stats(folder: Path | None) -> list[dict[str, Any]]:
    """The lines of stats.jsonl without the clock's."""
    assert folder is not None
    rows = StatsFile(folder / "stats.jsonl").rows()
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


def undisturbed(kind: str, data: Any, steps: int, folder: Path, **options: Any) -> Trainer:
    subject = trainer(kind, outdir=folder, name="whole", **options)
    seed_everything(7)
    subject.fit(data, steps=steps)
    return subject


def interrupted(kind: str, data: Any, parts: list[int], folder: Path, **options: Any) -> Trainer:
    subject = trainer(kind, outdir=folder, name="parts", **options)
    seed_everything(7)
    subject.fit(data, steps=parts[0])
    for steps in parts[1:]:
        seed_everything(1000 + steps)  # a new process has other states
        subject = Trainer.load(folder / "00000-parts", *networks(kind, seed=99), device="cpu")
        subject.fit(data, steps=steps)
    return subject


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(["plain", "with_statistics", "convolutional"]),
    parts=st.lists(st.integers(1, 8), min_size=2, max_size=3),
    log_every=st.integers(1, 5),
    save_every=st.sampled_from([0, 2, 3]),
)
def test_stops_anywhere_leave_no_trace(kind: str, parts: list[int], log_every: int, save_every: int) -> None:
    options = {"log_every": log_every, "save_every": save_every, "sample_every": 0}
    data = images(22)  # 5 batches an epoch and a rest of 2: the parts end inside and across epochs
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        whole = undisturbed(kind, data, sum(parts), Path(one), **options)
        pieces = interrupted(kind, data, parts, Path(other), **options)
        assert_same_state(state_of(whole), state_of(pieces))
        assert stats(whole.run_folder) == stats(pieces.run_folder)


class Augmented(Dataset[Tensor]):
    """Random changes from all three global generators."""

    def __len__(self) -> int:
        return 22

    def __getitem__(self, index: int) -> Tensor:
        scale = 0.2 * (torch.rand(()).item() + np.random.rand() + random.random())
        return images(22)[index] * scale


class OwnLatents:
    """Uniform latents from the trainer's generator."""

    def __call__(self, n: int, generator: torch.Generator) -> Tensor:
        return torch.rand(n, 4, generator=generator) * 2 - 1


def loader() -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(5)
    return DataLoader(TensorDataset(images(22)), batch_size=4, shuffle=True, drop_last=True, generator=generator)


@pytest.mark.parametrize("make", [Augmented, loader], ids=["augmented data set", "loader with a generator"])
def test_other_kinds_of_data(make: Any, tmp_path: Path) -> None:
    whole = undisturbed("with_statistics", make(), 13, tmp_path)
    pieces = trainer("with_statistics", outdir=tmp_path, name="parts")
    seed_everything(7)
    pieces.fit(make(), steps=7)
    seed_everything(8)
    pieces = Trainer.load(tmp_path / "00001-parts", *networks("with_statistics", seed=5))
    pieces.fit(make(), steps=6)
    assert_same_state(state_of(whole), state_of(pieces))


def test_steps_of_one_s_own_loop(tmp_path: Path) -> None:
    def run(subject: Trainer, first: int, last: int) -> None:
        for number in range(first, last):
            subject.train_step(images(4, seed=number))

    whole, pieces = trainer("with_statistics"), trainer("with_statistics")
    seed_everything(3)
    run(whole, 0, 9)
    seed_everything(3)
    run(pieces, 0, 4)
    pieces.save(tmp_path / "here")
    seed_everything(4)
    pieces = Trainer.load(tmp_path / "here", *networks("with_statistics", seed=9))
    assert pieces.step == 4 and pieces.run_folder is None
    run(pieces, 4, 9)
    assert_same_state(state_of(whole), state_of(pieces))


def test_two_fits_in_one_process_equal_one(tmp_path: Path) -> None:
    whole = undisturbed("with_statistics", images(22), 13, tmp_path, log_every=3)
    pieces = trainer("with_statistics", outdir=tmp_path, name="parts", log_every=3)
    seed_everything(7)
    pieces.fit(images(22), steps=7)
    pieces.fit(images(22), steps=6)
    assert_same_state(state_of(whole), state_of(pieces))
    assert stats(whole.run_folder) == stats(pieces.run_folder)
    assert len(list(tmp_path.iterdir())) == 2, "the second fit goes on in the same run folder"


def test_sampling_grids_do_not_change_the_training(tmp_path: Path) -> None:
    one = undisturbed("with_statistics", images(22), 8, tmp_path / "one", sample_every=1, save_every=1, log_every=1)
    other = undisturbed("with_statistics", images(22), 8, tmp_path / "other", sample_every=0, save_every=0, log_every=1)
    one_state, other_state = state_of(one), state_of(other)
    assert_same_state(one_state, other_state)


def test_save_and_load_of_a_model_by_name(tmp_path: Path) -> None:
    data = torch.rand(8, 1, 28, 28) * 2 - 1

    def make() -> Trainer:
        torch.manual_seed(0)
        return Trainer(
            *models.build("dcgan28", ngf=2, ndf=2, latent_dim=8), batch_size=4, outdir=tmp_path, device="cpu"
        )

    whole, pieces = make(), make()
    seed_everything(1)
    whole.fit(data, steps=3)
    seed_everything(1)
    first = pieces.fit(data, steps=2)
    assert first.folder is not None and first.folder.name == "00001-dcgan28-tensor-b4"
    again = Trainer.load(first.folder)
    assert again.settings == pieces.settings and again.sample_shape == (1, 28, 28)
    again.fit(data, steps=1)
    assert_same_state(state_of(whole), state_of(again))
    torch.testing.assert_close(again.sample(3), whole.sample(3), rtol=0, atol=0)


def test_networks_and_objects_of_one_s_own_must_be_handed_over(tmp_path: Path) -> None:
    class Loss:
        def d_loss(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
            return fake_logits.mean() - real_logits.mean()

        def g_loss(self, fake_logits: Tensor) -> Tensor:
            return -fake_logits.mean()

    trainer(loss=Loss(), latent=OwnLatents()).save(tmp_path / "c")
    with pytest.raises(RuntimeError, match=r"networks of your own classes .*hand newly made ones over"):
        Trainer.load(tmp_path / "c")
    with pytest.raises(ValueError, match="give both generator= and discriminator="):
        Trainer.load(tmp_path / "c", networks()[0])
    with pytest.raises(RuntimeError, match=r"loss of your own .*loss="):
        Trainer.load(tmp_path / "c", *networks())
    with pytest.raises(RuntimeError, match=r"latents of your own.*latent="):
        Trainer.load(tmp_path / "c", *networks(), loss=Loss())
    assert Trainer.load(tmp_path / "c", *networks(), loss=Loss(), latent=OwnLatents()).step == 0


def test_networks_of_another_make_are_refused(tmp_path: Path) -> None:
    trainer().save(tmp_path / "c")
    with pytest.raises(ConfigMismatchError, match=r"generator: .*parameters"):
        Trainer.load(tmp_path / "c", *networks("with_statistics"))
    wider = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Unflatten(1, SHAPE)), networks()[1]
    wider[0].register_buffer("more", torch.zeros(1))
    with pytest.raises(RuntimeError, match=r"generator.safetensors does not fit Sequential.*more"):
        Trainer.load(tmp_path / "c", *wider)


# ------------------------------------------------------------------------------------------- other configurations


def test_differences_are_listed(tmp_path: Path) -> None:
    trainer(outdir=tmp_path, name="x").fit(images(), steps=2)
    run = tmp_path / "00000-x"
    with pytest.raises(ConfigMismatchError) as caught:
        Trainer.load(run, *networks(), g_lr=1.0, batch_size=5, seed=3, log_every=7)
    assert caught.value.differences == (
        "batch_size: 4 in the checkpoint, 5 now",
        "g_lr: 0.01 in the checkpoint, 1.0 now",
        "seed: 0 in the checkpoint, 3 now",
    )
    assert "allow_changes" in str(caught.value)
    changed = Trainer.load(run, *networks(), g_lr=1.0, allow_changes=True)
    assert changed._step.g_optimizer.param_groups[0]["lr"] == 1.0
    assert changed._step.d_optimizer.param_groups[0]["lr"] == 0.01
    same = Trainer.load(run, *networks(), log_every=7)
    assert same.run_settings.log_every == 7, "what does not touch the numbers may change"
    both = Trainer.load(run, *networks(), lr=0.5, allow_changes=True)
    assert (both.settings.g_lr, both.settings.d_lr) == (0.5, 0.5)


def test_fit_with_resume_compares_too(tmp_path: Path) -> None:
    trainer(outdir=tmp_path, name="x").fit(images(), steps=2)
    with pytest.raises(ConfigMismatchError, match="betas"):
        trainer(outdir=tmp_path, name="x", betas=(0.1, 0.2)).fit(images(), steps=4, resume="auto")
    result = trainer(outdir=tmp_path, name="x", betas=(0.1, 0.2)).fit(
        images(), steps=4, resume="auto", allow_changes=True
    )
    assert (result.steps, result.step) == (2, 4)


def test_other_data_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer(outdir=tmp_path, name="x").fit(images(22), steps=2)
    loaded = Trainer.load(tmp_path / "00000-x", *networks())
    with pytest.raises(ValueError, match=r"other data.*samples was 22, is 21"):
        loaded.fit(images(21), steps=1)
    loaded = Trainer.load(tmp_path / "00000-x", *networks())
    assert loaded.fit(images(21), steps=1, allow_changes=True).step == 3
    assert "begins with its first batch" in caplog.text


def test_other_circumstances_are_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: Any) -> None:
    trainer().save(tmp_path / "c")
    Trainer.load(tmp_path / "c", *networks())
    assert "not bit for bit" not in caplog.text
    monkeypatch.setattr("gan_fast.backends.table_hash", lambda device: "another")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    Trainer.load(tmp_path / "c", *networks())
    assert "not bit for bit" in caplog.text
    assert "table_hash was" in caplog.text and "is 'another'" in caplog.text and "is 77" in caplog.text


# -------------------------------------------------------------------------------------------------- resume="auto"


def test_auto_goes_on_to_the_same_goal(tmp_path: Path) -> None:
    whole = undisturbed("with_statistics", images(22), 11, tmp_path / "whole")

    def script(steps: int) -> tuple[Trainer, Any]:
        subject = trainer("with_statistics", outdir=tmp_path, name="same")
        seed_everything(7)
        return subject, subject.fit(images(22), steps=steps, resume="auto")

    script(4)
    trainer(outdir=tmp_path, name="another").fit(images(22), steps=1)
    subject, result = script(11)
    assert (result.steps, result.step) == (7, 11) and result.folder == tmp_path / "00000-same"
    assert_same_state(state_of(whole), state_of(subject))
    _, result = script(11)
    assert result.steps == 0 and result.reason == "already at step 11 of 11: nothing to do"


def test_auto_with_a_run_that_ended_before_its_first_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "00004-x").mkdir()
    (tmp_path / "00004-x" / "stats.jsonl").write_text('{"step": 50}\n')
    result = trainer(outdir=tmp_path, name="x").fit(images(), steps=2, resume="auto")
    assert result.folder == tmp_path / "00004-x" and result.steps == 2
    assert [row["step"] for row in stats(result.folder)] == [2]


def test_a_trainer_that_has_trained_cannot_resume(tmp_path: Path) -> None:
    subject = trainer(outdir=tmp_path, name="x")
    subject.fit(images(), steps=1)
    with pytest.raises(ValueError, match="has already done 1 steps"):
        subject.fit(images(), steps=1, resume="auto")


def test_the_loaded_state_is_not_the_stored_file_s(tmp_path: Path) -> None:
    """Loading twice gives independent trainers, and training one leaves the checkpoint as it was."""
    trainer(outdir=tmp_path, name="x").fit(images(), steps=2)
    one = Trainer.load(tmp_path / "00000-x", *networks())
    before = copy.deepcopy(state_of(one))
    one.train_step(images(4))
    again = Trainer.load(tmp_path / "00000-x", *networks())
    assert_same_state(before, state_of(again))
