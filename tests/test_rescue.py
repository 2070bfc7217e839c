"""A training that fails in its middle keeps the steps that it has done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_gan import assert_same_state, images, networks, state_of, trainer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from gan_fast.training import Trainer, pictures
from gan_fast.training.run_folder import RunFolder, load_checkpoint


@pytest.fixture(autouse=True)
def no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing the loss curves would take longer than the trainings here."""
    monkeypatch.setattr(pictures, "save_loss_curves", lambda rows, path: False)


class Shaky(Dataset[Tensor]):
    """Images from a place that fails once, at the given access."""

    def __init__(self, fails_at: int) -> None:
        self.left = fails_at

    def __len__(self) -> int:
        return 22

    def __getitem__(self, index: int) -> Tensor:
        self.left -= 1
        if self.left == 0:
            raise OSError("the network drive is gone")
        return images(22)[index]


def loader(fails_at: int) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(5)
    return DataLoader(Shaky(fails_at), batch_size=4, shuffle=True, drop_last=True, generator=generator)


@pytest.mark.parametrize("fails_at", [4 * 7 + 1, 4 * 7 + 3, 4 * 10 + 1], ids=["first of a batch", "third", "new epoch"])
@pytest.mark.parametrize("make", [Shaky, loader], ids=["data set", "loader"])
def test_data_that_fails_costs_no_step(make: Any, fails_at: int, tmp_path: Path, caplog: Any) -> None:
    """The run goes on from its checkpoint, with the batch that failed, as if nothing had happened."""
    options = {"outdir": tmp_path, "save_every": 4, "log_every": 3, "sample_every": 0}
    whole = trainer(name="whole", **options)
    whole.fit(make(0), steps=13)
    done = (fails_at - 1) // 4
    with pytest.raises(OSError, match="network drive"):
        trainer(name="x", **options).fit(make(fails_at), steps=13)
    assert f"the training failed after step {done}, which was saved" in caplog.text
    run = tmp_path / "00001-x"
    assert load_checkpoint(run)[0].step == done
    pieces = trainer(name="x", **options)
    pieces.fit(make(0), steps=13, resume="auto")
    assert_same_state(state_of(whole), state_of(pieces))
    assert [row["step"] for row in RunFolder(run).stats.rows()] == [3, 6, 9, 12, 13]


def test_going_on_in_the_same_process(tmp_path: Path) -> None:
    whole, pieces = trainer(), trainer()
    whole.fit(Shaky(0), steps=13)
    data = Shaky(4 * 7 + 2)
    with pytest.raises(OSError, match="network drive"):
        pieces.fit(data, steps=13)
    pieces.fit(data, steps=6)
    assert_same_state(state_of(whole), state_of(pieces))


def test_wrong_values_in_a_later_batch(tmp_path: Path) -> None:
    """Found by the step's own check, before anything has moved."""

    class Bad(Shaky):
        def __getitem__(self, index: int) -> Tensor:
            self.left -= 1
            return images(22)[index] * (float("nan") if self.left <= 0 else 1)

    with pytest.raises(ValueError, match="NaN"):
        trainer(outdir=tmp_path, name="x", save_every=0).fit(Bad(4 * 3), steps=9)
    assert load_checkpoint(tmp_path / "00000-x")[0].step == 2


@pytest.mark.parametrize("which", ["save_grid", "save_loss_curves"])
def test_a_picture_that_fails_costs_no_step(which: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = trainer(outdir=tmp_path, name="x", sample_every=3, save_every=0)
    subject.fit(images(), steps=2)

    def fail(*arguments: Any) -> None:
        raise RuntimeError("no pencil")

    monkeypatch.setattr(pictures, which, fail)
    with pytest.raises(RuntimeError, match="no pencil"):
        subject.fit(images(), steps=2)
    expected = 3 if which == "save_grid" else 4
    assert subject.step == expected and load_checkpoint(tmp_path / "00000-x")[0].step == expected


def test_a_step_that_failed_half_way_is_not_saved(tmp_path: Path) -> None:
    """The discriminator has moved, the generator has not: no state of any step."""

    class Loss:
        steps = 0

        def d_loss(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
            return fake_logits.mean() - real_logits.mean()

        def g_loss(self, fake_logits: Tensor) -> Tensor:
            self.steps += 1
            if self.steps > 6:
                raise MemoryError("no room for the generator's gradients")
            return -fake_logits.mean()

    with pytest.raises(MemoryError):
        trainer(outdir=tmp_path, name="x", loss=Loss(), save_every=4).fit(images(), steps=20)
    assert load_checkpoint(tmp_path / "00000-x")[0].step == 4


def test_a_broken_state_never_replaces_a_good_checkpoint(tmp_path: Path, caplog: Any) -> None:
    class Breaking(Trainer):
        def train_step(self, *args: Any, **more: Any) -> Any:
            metrics = super().train_step(*args, **more)
            if self.step == 5:
                next(self.generator.parameters()).data[0, 0] = float("nan")
            return metrics

    subject = Breaking(*networks(), batch_size=4, outdir=tmp_path, name="x", save_every=4, device="cpu", sample_every=0)
    with pytest.raises(OSError, match="network drive"):
        subject.fit(Shaky(4 * 5 + 1), steps=9)
    assert "and so did its checkpoint: generator 0.weight is not finite" in caplog.text
    found, _ = load_checkpoint(tmp_path / "00000-x")
    assert found.step == 4
