"""``make demo``: its judgement can fail, and its rival is what a textbook has."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from gan_fast import models
from gan_fast.cli import demo, main


@pytest.mark.parametrize(
    ("confidence", "entropy", "good"),
    [(0.95, 2.25, True), (0.994, 0.0, False), (0.5, 2.25, False), (float("nan"), 2.25, False)],
)
def test_samples_must_be_digits_and_different_ones(confidence: float, entropy: float, good: bool) -> None:
    assert demo.judge(confidence, entropy) is good


def test_the_rival_is_plain_pytorch_and_learns() -> None:
    torch.manual_seed(0)
    generator, discriminator = models.build("dcgan28", accelerate=False, ngf=4, ndf=4)
    kinds = {type(layer).__module__.split(".")[0] for net in (generator, discriminator) for layer in net.main}
    assert kinds == {"torch"}
    before = [parameter.clone() for net in (generator, discriminator) for parameter in net.parameters()]
    step = demo.textbook_step(generator, discriminator)
    images = torch.rand(8, 1, 28, 28) * 2 - 1
    losses = [step(images) for _ in range(2)]
    after = [parameter for net in (generator, discriminator) for parameter in net.parameters()]
    assert all(bool(torch.isfinite(loss)) for pair in losses for loss in pair)
    assert all(not torch.equal(old, new) for old, new in zip(before, after, strict=True))


def test_both_rivals_start_from_the_same_network() -> None:
    ours = demo.make_trainer(3, 4, outdir=None).generator
    torch.manual_seed(3)
    plain, _ = models.build("dcgan28", accelerate=False)
    for (name, mine), (_, theirs) in zip(ours.state_dict().items(), plain.state_dict().items(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0, msg=name)


def test_first_and_last_line_of_the_statistics(tmp_path: Path) -> None:
    assert demo.last_losses(tmp_path) == []
    lines = [json.dumps({"step": step}) for step in (50, 100, 150)]
    (tmp_path / "stats.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert demo.last_losses(tmp_path) == [lines[0], lines[2]]


@pytest.mark.slow
def test_an_untrained_generator_fails_the_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--steps", "2", "--batch-size", "16", "--outdir", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert "IS BELOW the bound" in printed and "speed against eager PyTorch" in printed and ".png" in printed
