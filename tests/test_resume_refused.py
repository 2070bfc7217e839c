"""A refused resume leaves the trainer as it was, bit for bit; and what is said where there is nothing to resume."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_gan import assert_same_state, images, networks, state_of, trainer
from torch import nn

from gan_fast.training import CheckpointError, ConfigMismatchError, Trainer, checkpoint, pictures


@pytest.fixture(autouse=True)
def no_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing the loss curves would take longer than the trainings here."""
    monkeypatch.setattr(pictures, "save_loss_curves", lambda rows, path: False)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of 7 steps."""
    folder = trainer("with_statistics", outdir=tmp_path, name="x").fit(images(), steps=7).folder
    assert folder is not None
    return folder


def other_discriminator() -> nn.Module:
    """As many parameters as the stored one, of other shapes."""
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.Flatten(), nn.Linear(8, 1, bias=False))


def edit(change: Callable[[dict[str, Any]], Any]) -> Callable[[pytest.MonkeyPatch], None]:
    """A checkpoint whose trainer state reads as ``change`` leaves it."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        read = checkpoint.read

        def edited(folder: Path) -> checkpoint.Checkpoint:
            found = read(folder)
            change(found.state)
            return found

        monkeypatch.setattr(checkpoint, "read", edited)

    return patch


def swap_moments(state: dict[str, Any]) -> None:
    moments = state["d_optimizer"]["state"]
    moments[0], moments[1] = moments[1], moments[0]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (edit(lambda state: state.pop("random")), "has no entry 'random'"),
        (edit(lambda state: state["d_optimizer"]["param_groups"].clear()), "does not fit these networks"),
        (edit(swap_moments), "d_optimizer: exp_avg of parameter 0 has shape"),
        (edit(lambda state: state.update(latent_generator=torch.zeros(3, dtype=torch.uint8))), "does not fit"),
        (edit(lambda state: state.update(step="many")), "does not fit"),
    ],
    ids=["missing entry", "groups", "moments", "generator", "step"],
)
def test_state_that_does_not_fit(run: Path, monkeypatch: Any, change: Any, text: str) -> None:
    subject = trainer("with_statistics")
    before = copy.deepcopy(state_of(subject))
    change(monkeypatch)
    with pytest.raises(CheckpointError, match=text):
        subject.fit(images(), steps=9, resume=run)
    assert_same_state(before, state_of(subject))
    assert subject.run_folder is None
    whole = trainer("with_statistics")
    assert_same_state(state_of(whole), state_of(subject))


def test_the_second_network_does_not_fit(run: Path) -> None:
    """The first one has been loaded by the time this is found out."""
    generator = networks("with_statistics", seed=3)[0]
    subject = Trainer(generator, other_discriminator(), batch_size=4, lr=1e-2, outdir=None, device="cpu")
    before = copy.deepcopy(state_of(subject))
    with pytest.raises(CheckpointError, match=r"discriminator.safetensors does not fit Sequential"):
        subject.fit(images(), steps=9, resume=run, allow_changes=True)
    assert_same_state(before, state_of(subject))

    again = networks("with_statistics", seed=3)[0]
    with pytest.raises(CheckpointError, match=r"discriminator.safetensors does not fit Sequential"):
        Trainer.load(run, again, other_discriminator(), allow_changes=True)
    assert_same_state(dict(networks("with_statistics", seed=3)[0].state_dict()), dict(again.state_dict()))


def test_other_data_or_settings_leave_the_trainer_free_to_resume(run: Path) -> None:
    whole = trainer("with_statistics")
    torch.manual_seed(0)
    whole.fit(images(), steps=9)
    subject = trainer("with_statistics")
    before = copy.deepcopy(state_of(subject))
    with pytest.raises(ValueError, match="samples was 22, is 21"):
        subject.fit(images(21), steps=9, resume=run)
    assert_same_state(before, state_of(subject))
    assert subject.step == 0 and subject.config["data"] is None
    with pytest.raises(ConfigMismatchError, match="g_lr"):
        trainer("with_statistics", lr=0.5).fit(images(), steps=9, resume=run)
    assert subject.fit(images(), steps=9, resume=run).steps == 2


def test_epochs_of_endless_data_are_refused_before_the_resume(run: Path) -> None:
    class Endless(torch.utils.data.IterableDataset[torch.Tensor]):
        def __iter__(self) -> Any:
            return iter(images())

    subject = trainer("with_statistics")
    with (
        pytest.warns(UserWarning, match="will not see the same batches"),
        pytest.raises(ValueError, match="its length"),
    ):
        subject.fit(Endless(), epochs=1, resume=run)
    assert subject.step == 0


# -------------------------------------------------------------------------------------- nothing of that name to resume


def test_auto_tells_of_a_run_that_has_only_another_name(tmp_path: Path, caplog: Any) -> None:
    trainer(outdir=tmp_path).fit(images(), steps=1)
    assert "resume" not in caplog.text
    subject = trainer(outdir=tmp_path, batch_size=5, seed=3)
    assert subject.fit(images(), steps=1, resume="auto").folder == tmp_path / "00001-sequential-tensor-b5"
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    for part in (
        "no run is called sequential-tensor-b5, so a new one begins",
        f"{tmp_path / '00000-sequential-tensor-b4'} trained the same model on the same data",
        "batch_size: 4 in the checkpoint, 5 now",
        "seed: 0 in the checkpoint, 3 now",
    ):
        assert part in warning


@pytest.mark.parametrize("case", ["name given", "other model", "other data", "no configuration", "damaged"])
def test_auto_is_quiet_where_no_run_is_alike(case: str, tmp_path: Path, caplog: Any) -> None:
    subject = trainer(outdir=tmp_path)
    folder = tmp_path / "00000-sequential-tensor-b4"
    subject.fit(images(), steps=1)
    config = json.loads((folder / "config.json").read_text())
    if case == "other model":
        config["training"]["generator"]["class"] = "Unet"
    elif case == "other data":
        config["data"]["name"] = "digits"
    text = {"no configuration": "", "damaged": "{half"}.get(case, json.dumps(config))
    (folder / "config.json").write_text(text) if text else (folder / "config.json").unlink()
    name = "mine" if case == "name given" else None
    trainer(outdir=tmp_path, batch_size=5, name=name).fit(images(), steps=1, resume="auto")
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


# --------------------------------------------------------------------------------------------------------- prepare


def test_prepare_is_fit_without_its_steps(run: Path) -> None:
    files = sorted(path for path in run.rglob("*"))
    subject = trainer("with_statistics", outdir=run.parent, name="x")
    feed = subject.prepare(images(), resume="auto")
    assert subject.step == 7 and feed.position == 2 and feed.epoch == 1
    assert sorted(path for path in run.rglob("*")) == files
    with pytest.raises(ConfigMismatchError, match="seed"):
        trainer("with_statistics", outdir=run.parent, name="x", seed=1).prepare(images(), resume="auto")


def test_other_data_is_another_configuration(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="gan_fast")
    with pytest.raises(ConfigMismatchError, match=r"samples was 22, is 21.*allow_changes=True") as caught:
        trainer("with_statistics").fit(images(21), steps=9, resume=run)
    assert "samples was 22, is 21" in caught.value.differences[0]
    assert "resumed from" not in caplog.text
    assert trainer("with_statistics").fit(images(21), steps=9, resume=run, allow_changes=True).step == 9
    assert "resumed from" in caplog.text


class Named(list[torch.Tensor]):
    """A map-style data set that tells its contents apart."""

    fingerprint = "first"


def test_a_data_set_with_a_fingerprint_is_known_again(tmp_path: Path) -> None:
    data = Named(images(8))
    folder = trainer(outdir=tmp_path, name="x").fit(data, steps=2).folder
    exchanged = Named(images(8) * 0)
    exchanged.fingerprint = "second"
    with pytest.raises(ConfigMismatchError, match="fingerprint was 'first', is 'second'"):
        trainer(outdir=tmp_path, name="x").fit(exchanged, steps=3, resume=folder)
    assert trainer(outdir=tmp_path, name="x").fit(data, steps=3, resume=folder).step == 3


def test_auto_without_an_outdir_says_that_nothing_is_resumed(caplog: pytest.LogCaptureFixture) -> None:
    assert trainer(outdir=None).fit(images(), steps=1, resume="auto").step == 1
    assert "without an outdir" in caplog.text
