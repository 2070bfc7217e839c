"""Networks wrapped by torch.compile: the trainer takes them, and their checkpoints fit plain networks and back."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
from tiny_gan import assert_same_state, images, networks, state_of
from torch import nn

from gan_fast.training import Trainer


@pytest.fixture(autouse=True)
def no_left_over_graphs() -> None:
    torch.compiler.reset()


def wrapped(kind: str, how: str) -> tuple[nn.Module, nn.Module]:
    """Networks in plain form, as torch.compile's wrappers, or with wrappers inside them."""
    pair = networks(kind)
    if how == "whole":
        return tuple(torch.compile(network, backend="eager") for network in pair)  # type: ignore[return-value]  # a pair it is
    if how == "inside":
        for network in pair:
            network[0] = torch.compile(network[0], backend="eager")
    return pair


def trainer(how: str, kind: str = "plain") -> Trainer:
    return Trainer(*wrapped(kind, how), batch_size=4, outdir=None, device="cpu", lr=1e-2)


def plain_state(subject: Trainer) -> dict[str, object]:
    state = state_of(subject)
    for name in ("generator", "discriminator"):
        state[name] = {key.replace("_orig_mod.", ""): value for key, value in state[name].items()}
    return state


@pytest.mark.parametrize("kind", ["plain", "with_statistics", "convolutional"])
@pytest.mark.parametrize("how", ["whole", "inside"])
def test_checkpoints_hold_plain_names_and_load_both_ways(how: str, kind: str, tmp_path: Path) -> None:
    subject = trainer(how, kind)
    subject.train_step(images(4))
    subject.save(tmp_path / "c")
    expected = plain_state(subject)
    stored = safetensors.torch.load_file(tmp_path / "c" / "generator.safetensors")
    assert stored.keys() == networks(kind)[0].state_dict().keys()
    plain = Trainer.load(tmp_path / "c", *networks(kind, seed=5), device="cpu")
    assert_same_state(expected, plain_state(plain))
    plain.save(tmp_path / "d")
    back = Trainer.load(tmp_path / "d", *wrapped(kind, how), device="cpu")
    assert_same_state(expected, plain_state(back))
    before = back.generator.state_dict()
    assert any("_orig_mod." in name for name in before), "the user's networks stay wrapped"


def test_a_run_of_compiled_networks_has_the_plain_name(tmp_path: Path) -> None:
    pair = wrapped("plain", "whole")
    subject = Trainer(*pair, batch_size=4, outdir=tmp_path, device="cpu", sample_every=0)
    folder = subject.fit(images(), steps=1).folder
    assert folder is not None and folder.name == "00000-sequential-tensor-b4"
    assert subject.config["training"]["generator"]["class"] == "Sequential"
