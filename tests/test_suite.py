"""gan_fast.suite: layers as words, right and wrong results, result files and what changed between them."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gan_fast.bench import interleaved
from gan_fast.suite import changes, layers, results, shapes, spec, steps, translated
from gan_fast.suite.results import Row

ROOT = Path(__file__).resolve().parent.parent


class Quiet(interleaved.Calibration):
    """A machine that is never disturbed: nothing is run for it."""

    def __init__(self) -> None:
        self.rounds, self.best, self._operations = 1, 1.0, 1e12

    def __call__(self) -> float:
        return self.best


# ------------------------------------------------------------------------------------------------- layers as words


@pytest.mark.parametrize(
    ("text", "output"),
    [
        ("convt:128,128,k5,s2,7x7", (14, 14)),
        ("convt:64,3,k4,s2,32x32,b8", (64, 64)),
        ("convt:8,4,k3,s1,9x5", (9, 5)),
        ("convt:8,4,k25,s4,16", (64,)),
        ("convt:8,4,k4,s1,p0,1x1", (4, 4)),
        ("convt:8,4,k2,s3,5", (15,)),
        ("conv:128,1,k7,28x28", (28, 28)),
        ("conv:1,8,k3,s2,28x27", (14, 14)),
        ("conv:4,4,k3,d3,4096", (4096,)),
        ("conv:4,4,k3,p0,5x5", (3, 3)),
        ("upconv:8,4,k3,8x8", (16, 16)),
    ],
)
def test_a_layer_keeps_or_multiplies_the_size_unless_told_otherwise(text: str, output: tuple[int, ...]) -> None:
    shape = spec.parse(text)
    assert shape.output_size == output
    assert shape.batch == (8 if "b8" in text else spec.BATCH)
    x, weight = torch.zeros(shape.input_shape), torch.zeros(shape.weight_shape)
    assert layers.call(shape, "torch")(x, weight, torch.zeros(shape.out_channels)).shape[2:] == output


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("convtr:1,2,k3,8x8", "'convtr' is no operator"),
        ("conv", "'conv' is no operator"),
        ("conv:1,k3,8x8", "begins with the channels"),
        ("conv:1,2,8x8", "the kernel is missing"),
        ("conv:1,2,k3", "the size is missing"),
        ("conv:1,2,k3,8x8x8", "'8x8x8' is not understood"),
        ("conv:1,2,k3,k5,8x8", "'k5' is not understood"),
        ("conv:1,2,k3,s0,8x8", "at least 1"),
        ("conv:1,2,k3,o1,8x8", "output padding is for convt only"),
        ("convt:1,2,k3,s2,o2,8x8", "output padding is smaller"),
        ("conv:1,2,k9,p0,8x8", "its output would have the size"),
    ],
)
def test_a_wrong_layer_is_told_what_was_expected(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why) as caught:
        spec.parse(text)
    assert spec.EXAMPLE in str(caught.value) and repr(text) in str(caught.value)


def test_every_listed_layer_can_be_said_in_a_word() -> None:
    words = {"conv": "conv", "conv_transpose": "convt", "upsample_conv": "upconv"}
    for shape in shapes.SHAPES:
        output_padding = f",o{shape.output_padding}" if shape.output_padding else ""
        said = spec.parse(
            f"{words[shape.op]}:{shape.in_channels},{shape.out_channels},k{shape.kernel[0]},s{shape.stride},"
            f"p{shape.padding}{output_padding},d{shape.dilation},{'x'.join(map(str, shape.size))},b{shape.batch}"
        )
        assert dataclasses.replace(said, family=shape.family) == shape


# ------------------------------------------------------------------------------------------------------- measuring


def test_a_layer_has_a_row_for_each_pass_format_and_program() -> None:
    found = layers.measure([spec.parse("convt:3,5,k4,s2,6x6,b2")], rounds=2, calibration=Quiet())
    assert [rows[0].pass_ for rows in found] == list(layers.PASSES)
    for rows in found:
        assert {(row.program, row.format) for row in rows} == {
            (program, layout) for program in ("torch", "gan_fast") for layout in layers.FORMATS
        }
        assert all(row.seconds is not None and row.seconds > 0 and row.gflop for row in rows)
    text = results.table([row for rows in found for row in rows])
    assert text.count("x best") == 12 and "own/conv_transpose-3to5" in text


@pytest.mark.parametrize("error", [1e-2, math.nan, math.inf])
def test_a_wrong_result_gets_no_time(error: float, monkeypatch: pytest.MonkeyPatch) -> None:
    right = layers.call

    def broken(shape: shapes.LayerShape, provider: str) -> Callable[..., torch.Tensor]:
        function = right(shape, provider)
        return (lambda x, w, b: function(x, w, b) + error) if provider == "auto" else function

    monkeypatch.setattr(layers, "call", broken)
    found = layers.measure([spec.parse("conv:3,5,k3,6x6,b2")], rounds=2, calibration=Quiet())
    forward, *gradients = found
    assert [row.seconds for row in forward] == [None] * 4
    assert all("differs from PyTorch's result" in row.wrong for row in forward if row.program == "gan_fast")
    assert all(row.seconds is not None for rows in gradients for row in rows), "their results are right"
    assert "no time: differs" in results.table(forward) and "2 results are WRONG" in results.summary(forward)


def test_steps_of_all_programs_agree_and_have_times() -> None:
    real, z = steps.inputs("article", 2)
    recipes = steps.recipes(steps.networks("article"), real, z)
    assert steps.BASELINE in recipes and "gan_fast.Trainer" in recipes
    few = {name: recipes[name] for name in (steps.BASELINE, "gan_fast.accelerate, textbook")}
    right = recipes[steps.BASELINE]()()[0]
    few["gan_fast.broken"] = lambda: lambda: (right, torch.tensor(float("nan")))
    rows, losses = steps.measure("article", few, 2, 2, Quiet())
    assert set(losses) == set(few)
    assert [row.seconds is not None for row in rows] == [True, True, False]
    assert "nan" in rows[2].wrong and rows[0].images == 2
    assert "article b2" in results.summary(rows)


@pytest.mark.parametrize("network", steps.NETWORKS)
def test_every_network_has_both_loops_of_pytorch_s_and_the_trainer(network: str) -> None:
    """A discriminator of batch statistics or dropout sees real and fake images apart, in the frozen loop too."""
    real, z = steps.inputs(network, 2)
    recipes = steps.recipes(steps.networks(network), real, z)
    loops = [f"{loop} {layout}" for loop in ("textbook", "frozen") for layout in ("NCHW", "channels_last")]
    assert list(recipes)[:4] == loops and "gan_fast.Trainer" in recipes
    assert (steps.SIMULTANEOUS in recipes) == network.startswith("article")


@pytest.mark.parametrize("network", ["dcgan28", "pytorch_gan_dcgan"])
def test_the_frozen_loop_agrees_where_a_discriminator_has_batch_statistics(network: str) -> None:
    real, z = steps.inputs(network, 3)
    recipes = steps.recipes(steps.networks(network), real, z)
    programs, _ = steps.make({name: recipes[name] for name in (steps.BASELINE, "frozen NCHW", "frozen channels_last")})
    assert steps.differences(steps.first_losses(programs)) == {}


def test_a_peer_that_is_not_here_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real, z = steps.inputs("article", 2)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    recipes = steps.recipes(steps.networks("article"), real, z, others=["jax", "tensorflow"])
    few = {name: recipes[name] for name in (steps.BASELINE, "JAX", "TensorFlow")}
    rows, _ = steps.measure("article", few, 2, 2, Quiet())
    said = ["", *(f"not installed: pip install {name}" for name in ("jax", "tensorflow"))]
    assert [row.missing for row in rows] == said
    assert "JAX" in results.table(rows) and "missing: not installed" in results.table(rows)
    assert "WRONG" not in results.summary(rows)


@pytest.mark.parametrize("peer", ["jax", "tensorflow"])
def test_peers_of_other_libraries_do_the_same_step(peer: str) -> None:
    pytest.importorskip(peer, reason="a peer of the benchmarks, not of the tests' environment")
    real, z = steps.inputs("article_act", 2)
    recipes = steps.recipes(steps.networks("article_act"), real, z, others=[peer])
    chosen = {name: recipes[name] for name in (steps.BASELINE, steps.PEERS[peer][0])}
    programs, missing = steps.make(chosen)
    assert not missing
    for _ in range(3):
        assert steps.differences(steps.first_losses(programs)) == {}


@pytest.mark.parametrize("network", ["article", "article_act"])
def test_translated_layers_compute_what_torch_does(network: str) -> None:
    """With torch's own operations on channels-last tensors: the weights' order is what can go wrong."""
    generator, discriminator = steps.networks(network)
    real, z = steps.inputs(network, 2)
    for module, x in ((generator, z), (discriminator, real)):
        expected = module(x)
        value = x.permute(0, 2, 3, 1) if x.dim() == 4 else x
        for layer in translated.translate(module, tuple(x.shape[1:])):
            weights = {name: torch.from_numpy(array.copy()) for name, array in layer.weights.items()}
            value = apply(layer, weights, value)
        torch.testing.assert_close(value.permute(0, 3, 1, 2) if value.dim() == 4 else value, expected)


def apply(layer: translated.Layer, weights: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    if layer.op == "linear":
        return x @ weights["weight"] + weights["bias"]
    if layer.op == "reshape":
        return x.reshape(len(x), *layer.form["shape"])
    if layer.op == "tanh":
        return x.tanh()
    if layer.op == "leaky_relu":
        return torch.nn.functional.leaky_relu(x, layer.form["slope"])
    image, weight = x.permute(0, 3, 1, 2), weights["weight"].permute(3, 2, 0, 1)
    form = {"bias": weights["bias"], "stride": layer.form["stride"], "padding": layer.form["padding"]}
    if layer.op == "conv_transpose":
        form["output_padding"] = layer.form["extra"]
        return torch.nn.functional.conv_transpose2d(image, weight, **form).permute(0, 2, 3, 1)
    return torch.nn.functional.conv2d(image, weight, **form).permute(0, 2, 3, 1)


def test_what_has_no_translation_is_named() -> None:
    for module, why in (
        (torch.nn.Sequential(torch.nn.BatchNorm2d(3)), "BatchNorm2d has no translation"),
        (torch.nn.Linear(3, 3), "only torch.nn.Sequential"),
        (torch.nn.Sequential(torch.nn.Conv2d(4, 4, 3, groups=2)), "Conv2d has no translation"),
    ):
        with pytest.raises(ValueError, match=why):
            translated.translate(module, (3, 8, 8))


# -------------------------------------------------------------------------------------------------------- files

FIELDS = {"kind": "step", "name": "a", "program": "b"}
#: Files of the right format with something else in them.
BROKEN = [
    json.dumps({"format": results.FORMAT, "machine": machine, "rows": [{**FIELDS, **row}]})
    for machine, row in (
        (None, {}), ({}, {"quartiles": []}), ({}, {"seconds": "fast"}), ({}, {"seconds": 0}), ({}, {"name": ["x"]}),
        ({}, {"times": [[1.0, -1.0]]}), ({}, {"times": [[]]}), ({}, {"times": 3}),
    )
]  # fmt: skip


def row(program: str, seconds: float | None, spread: float = 0.01, **fields: Any) -> Row:
    made = Row("layer", "own/a", program, "forward", "NCHW", family="own", gflop=1.0, **fields)
    if seconds is not None:
        made.seconds, made.rounds = seconds, 9
        made.quartiles = (seconds * (1 - spread), seconds * (1 + spread))
    return made


def written(path: Path, rows: list[Row], **machine: Any) -> Path:
    results.write(path, rows, {**results.describe(), **machine}, preset="quick")
    return path


def test_files_come_back_as_they_were(tmp_path: Path) -> None:
    rows = [row("torch", 2.0), row("gan_fast", None, wrong="differs")]
    machine, found = results.read(written(tmp_path / "deep" / "a.json", rows))
    assert found == rows and machine["torch"] == torch.__version__


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "other"}', *BROKEN])
def test_other_files_are_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"no result file of gan-fast bench.*expected format"):
        results.read(path)


def test_a_row_is_a_line_and_times_are_short(tmp_path: Path) -> None:
    rows = [row("torch", 2.0), row("gan_fast", 1.0)]
    rows[0].take({
        "seconds": 2.0, "quartiles": [1.9, 2.1], "rounds": 3, "trusted": True, "peak": 1e9,
        "times": [[1.23456789e-3, 2.0], [3.0]],
    })  # fmt: skip
    path = written(tmp_path / "a.json", rows)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line.strip(" ,"))["program"] for line in lines if '"program"' in line] == ["torch", "gan_fast"]
    assert results.read(path)[1][0].times == [[1.235e-3, 2.0], [3.0]]
    assert json.loads(path.read_text(encoding="utf-8"))["settings"] == {"preset": "quick"}


COMMITTED = [
    path for path in sorted((ROOT / "benchmarks/results").glob("*/*.json")) if results.FORMAT in path.read_text()[:99]
]


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.name)
def test_committed_files_are_read(path: Path) -> None:
    """Those of earlier versions have no turns."""
    rows = results.read(path)[1]
    found = results.ratios(rows)
    assert found and results.findings(rows) and results.table(rows)
    # Of scaling, the exponents are the summary; see tests of suite.exponents.
    assert bool(results.summary(rows)) == any(row.kind != "scaling" for row in rows)
    for ours, ratio in found:
        assert ratio.interval[0] <= ratio.value <= ratio.interval[1]
        if ours.times is None:
            peer = results.fastest_peers(rows)[ours.piece]
            assert ratio.pairs == 0 and ratio.value == (peer.seconds or 0) / (ours.seconds or 1)


def test_a_ratio_is_that_of_the_turns_which_both_took() -> None:
    theirs, ours = row("torch", 9.0), row("gan_fast", 9.0)
    assert results.ratio(theirs, ours).value == 1.0 and results.ratio(theirs, ours).pairs == 0
    theirs.times, ours.times = [[2.0, 4.0], [6.0, 8.0]], [[1.0, 2.0], [3.0, 4.0]]
    found = results.ratio(theirs, ours)
    assert found.value == pytest.approx(2.0) and found.pairs == 4
    assert "2.00 x best +-0% 9 turns" in results.table([theirs, ours])
    assert results.findings([theirs, ours])[0]["against"] == "torch NCHW"


def pair(name: str, peer: float, ours: float | None, spread: float = 0.01, **fields: Any) -> list[Row]:
    """PyTorch's row and gan_fast's of a layer."""
    made = [row("torch", peer, spread), row("gan_fast", ours, spread, **fields)]
    return [dataclasses.replace(found, name=name) for found in made]


def test_only_what_leaves_the_band_has_changed(tmp_path: Path) -> None:
    before = [*pair("same", 2, 1), *pair("slow", 2, 1), *pair("fast", 2, 1), *pair("noisy", 2, 1, 0.5)]
    before += [*pair("gone", 2, 1), *pair("bad", 2, 1), *pair("shaken", 2, 1)]
    # The machine is 1.5 times slower meanwhile: times change, ratios do not.
    after = [*pair("same", 3, 1.5), *pair("slow", 3, 2), *pair("fast", 3, 1), *pair("noisy", 3, 1.9, 0.5)]
    after += [*pair("bad", 3, None, wrong="differs"), *pair("shaken", 3, 9, trusted=False)]
    text, worse = changes.compare(written(tmp_path / "a.json", before), written(tmp_path / "b.json", after))
    verdicts = {line.split()[0]: line.rsplit("  ", 1)[-1] for line in text.splitlines() if "->" in line}
    changed = {"slow": "SLOWER", "fast": "faster", "shaken": "disturbed, not judged"}
    assert verdicts == {"same": "no change", "noisy": "no change", **changed}
    assert worse == 2 and "became wrong: differs" in text and "2 slower or wrong, 1 faster" in text
    assert (
        "6 rows of gan_fast in common; of all rows, 2 only in" in text and text.count(f"torch {torch.__version__}") == 2
    )
    assert changes.compare(tmp_path / "a.json", tmp_path / "a.json")[1] == 0
    assert changes.compare(tmp_path / "a.json", tmp_path / "b.json", band=0.9)[1] == 1


def test_pairs_are_judged_in_a_disturbed_machine_too(tmp_path: Path) -> None:
    files = []
    for name, ours in (("a", 1.0), ("b", 1.5)):
        rows = pair("shaken", 2.0, ours, 0.5, trusted=False)
        for found, seconds in zip(rows, (2.0, ours), strict=True):
            found.times = [[seconds * mood for mood in (1.0, 2.0, 3.0)]] * 3
        files.append(written(tmp_path / f"{name}.json", rows))
    text, worse = changes.compare(*files)
    assert worse == 1 and "2.00 ->   1.33 x best  -33.3% (band 10%)  SLOWER" in text


def test_files_of_different_machines_are_not_compared_unless_asked(tmp_path: Path) -> None:
    a = written(tmp_path / "a.json", pair("a", 2, 1))
    b = written(tmp_path / "b.json", pair("a", 2, 1), threads=99)
    with pytest.raises(ValueError, match=r"different machines: threads \d+ and 99"):
        changes.compare(a, b)
    assert changes.compare(a, b, any_machine=True)[1] == 0
    with pytest.raises(ValueError, match="no row of gan_fast in common"):
        changes.compare(a, written(tmp_path / "c.json", pair("other", 2, 1)))


def test_ratios_are_to_the_best_of_pytorch_over_the_formats() -> None:
    rows = [row("torch", 4.0), row("gan_fast", 2.0)]
    other = [dataclasses.replace(r, format="channels_last", seconds=s) for r, s in zip(rows, (3.0, 1.5), strict=True)]
    assert [(found.seconds, ratio.value) for found, ratio in results.ratios([*rows, *other])] == [(1.5, 2.0)]
    assert math.isclose(results.geometric_mean([1.0, 4.0]), 2.0)
    assert json.loads(json.dumps(dataclasses.asdict(rows[0])))["seconds"] == 4.0
