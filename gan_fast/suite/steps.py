"""One training step of a GAN: gan_fast's two ways against the programs of :mod:`gan_fast.suite.peers`.

All programs start from the same weights and do the same mathematics; the losses of their first step are compared
before any time is taken.
"""

from __future__ import annotations

import copy
import functools
import importlib
import importlib.util
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

import gan_fast
from gan_fast.bench import interleaved
from gan_fast.precision import autocast_dtype
from gan_fast.suite import peers
from gan_fast.suite.results import Row
from gan_fast.suite.sweeps import Piece, sweep

__all__ = ["BASELINE", "MODELS", "NETWORKS", "inputs", "measure", "networks", "piece", "recipes"]

BASELINE = "textbook NCHW"
#: Another mathematics: its G descends against D before the update, so that g_loss differs by what D learns in a step.
SIMULTANEOUS = "gan_fast.Trainer, simultaneous"
#: Networks of gan_fast.models, and all that have a name.
MODELS = ("dcgan28", "dcgan64")
NETWORKS = (*sorted(peers.NETWORKS), *MODELS)
#: Shapes of an image and of a latent, where they are not the article's.
SHAPES = {"dcgan64": ((3, 64, 64), (100, 1, 1)), "pytorch_gan_dcgan": ((1, 32, 32), (100,))}
#: With these layers a discriminator must see real and fake images apart, in the frozen programs too.
OF_ONE_BATCH = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
#: Losses of the first step, program against BASELINE: the same mathematics in another order of sums.
LARGEST_DIFFERENCE = {"fp32": 1e-3, "bf16": 2e-2}

#: Of each program in a visit.
TURNS = 2

#: Peers beyond eager PyTorch: what they are called in a table, and the package that they need.
PEERS = {"compile": ("torch.compile", "torch"), "jax": ("JAX", "jax"), "tensorflow": ("TensorFlow", "tensorflow")}

Networks = tuple[nn.Module, nn.Module]


def networks(name: str) -> Networks:
    """(G, D) of a name in `NETWORKS`, in plain torch layers."""
    torch.manual_seed(0)
    return gan_fast.models.build(name, accelerate=False) if name in MODELS else peers.NETWORKS[name]()


def inputs(name: str, batch: int) -> tuple[Tensor, Tensor]:
    """Real images and latents for a network in `NETWORKS`."""
    images, latent = SHAPES.get(name, ((1, 28, 28), (100,)))
    torch.manual_seed(1)
    return torch.rand(batch, *images) * 2 - 1, torch.randn(batch, *latent)


def recipes(
    original: Networks, real: Tensor, z: Tensor, *, bf16: bool = False, others: Iterable[str] = ()
) -> dict[str, Callable[[], Callable[[], Any]]]:
    """name -> what makes the program, networks and optimisers included; a program does one step and returns
    (d_loss, g_loss).

    Args:
        original: (G, D) in plain torch layers; every program gets a copy.
        real, z: its batch.
        bf16: add eager PyTorch under bfloat16 autocast, and the Trainer in bf16.
        others: of `PEERS`; "compile" is the eager loop with both networks under torch.compile. A recipe raises
            ValueError where its library cannot say these networks, and ImportError where it is not installed.
    """
    batchwise = any(isinstance(layer, OF_ONE_BATCH) for layer in original[1].modules())
    steps: dict[str, Callable[..., Any]] = dict(peers.STEPS)
    if batchwise:
        steps["frozen"] = functools.partial(peers.Frozen, apart=True)

    def eager(step: Any, accelerate: bool = False, compile: bool = False, **settings: Any) -> Any:
        made = copy.deepcopy(original)
        if accelerate:
            gan_fast.accelerate(*made)
        program = step(*made, **settings)
        if compile:
            for network in made:
                network.compile()
        return lambda: program.step(real, z)

    def ours(**settings: Any) -> Any:
        return trained(copy.deepcopy(original), real, z, **settings)

    layouts = {"NCHW": torch.contiguous_format}
    if real.dim() == 4:
        layouts["channels_last"] = torch.channels_last
    best, best_format = list(layouts.items())[-1]
    found: dict[str, Callable[[], Any]] = {}
    for step_name, step in steps.items():
        for layout, memory_format in layouts.items():
            found[f"{step_name} {layout}"] = functools.partial(eager, step, memory_format=memory_format)
    step_name, step = list(steps.items())[-1]  # the best there is for this network
    low: dict[str, Any] = {"memory_format": best_format, "autocast": autocast_dtype("bf16")}
    for other in others:
        if other == "compile":
            last: dict[str, Any] = {"memory_format": best_format, "compile": True}
            found[PEERS[other][0]] = functools.partial(eager, step, **last)
        else:
            found[PEERS[other][0]] = functools.partial(_elsewhere, other, original, real, z)
    if bf16:
        found[f"{step_name} {best} bf16"] = functools.partial(eager, step, **low)
    found["gan_fast.accelerate, textbook"] = functools.partial(eager, peers.Textbook, accelerate=True)
    found["gan_fast.Trainer"] = ours
    if not batchwise and _one_logit(original[1], real):
        found[SIMULTANEOUS] = functools.partial(ours, update="simultaneous")
    if bf16:
        found["gan_fast.Trainer bf16"] = functools.partial(ours, precision="bf16")
    return found


def _one_logit(discriminator: nn.Module, real: Tensor) -> bool:
    """Whether each sample has one logit, as the simultaneous update needs."""
    with torch.no_grad():
        return copy.deepcopy(discriminator)(real[:2]).numel() == min(2, len(real))


def _elsewhere(peer: str, original: Networks, real: Tensor, z: Tensor) -> Callable[[], Any]:
    """The step in another library."""
    package = PEERS[peer][1]
    if importlib.util.find_spec(package) is None:
        raise ImportError(f"not installed: pip install {package}")
    return importlib.import_module(f"gan_fast.suite.peers_{peer}").step(*original, real, z)


def trained(pair: Networks, real: Tensor, z: Tensor, **settings: Any) -> Callable[[], Any]:
    """A step of the Trainer, as `recipes` has them."""
    trainer = gan_fast.Trainer(
        *pair,
        latent_dim=tuple(z.shape[1:]),
        batch_size=len(z),
        outdir=None,
        progress=False,
        device=str(real.device),
        **settings,
    )

    def step() -> tuple[Tensor, Tensor]:
        metrics = trainer.train_step(real, z)
        return metrics.d_loss, metrics.g_loss

    return step


def first_losses(programs: Mapping[str, Callable[[], Any]]) -> dict[str, list[float]]:
    """Losses of each program's first step."""
    losses = {}
    for name, run in programs.items():
        torch.manual_seed(2)  # the same masks of dropout for all
        losses[name] = [float(value) for value in run()]
    return losses


def differences(losses: Mapping[str, list[float]]) -> dict[str, str]:
    """What is wrong with a program's first losses, by its name; the programs that agree with BASELINE are left out."""
    wrong = {}
    for name, values in losses.items():
        allowed = LARGEST_DIFFERENCE["bf16" if "bf16" in name else "fp32"]
        compared = values[:1] if name == SIMULTANEOUS else values
        pairs = zip(compared, losses[BASELINE], strict=False)
        if not all(abs(a - b) <= allowed * max(1.0, abs(b)) for a, b in pairs):  # false for NaN too
            wrong[name] = f"the first step's losses {values} differ from {BASELINE}'s {losses[BASELINE]}"
    return wrong


def make(recipes: Mapping[str, Callable[[], Any]]) -> tuple[dict[str, Callable[[], Any]], dict[str, str]]:
    """The programs of `recipes`, and why some of the peers are missing."""
    programs, missing = {}, {}
    names = {title for title, _ in PEERS.values()}
    for name, recipe in recipes.items():
        try:
            programs[name] = recipe()
        except (ImportError, ValueError) as error:
            if name not in names:
                raise
            missing[name] = str(error)
    return programs, missing


def piece(name: str, recipes: Mapping[str, Callable[[], Any]], batch: int) -> tuple[Piece, dict[str, list[float]]]:
    """What :func:`gan_fast.suite.sweeps.sweep` measures, and the programs' first losses, known after its first visit.

    A program with other losses than BASELINE gets no time; a peer that is not here is named.
    """
    rows = {
        program: Row(
            "step", f"{name} b{batch}", program, dtype="bfloat16" if "bf16" in program else "float32", family=name,
            images=batch,
        )
        for program in recipes
    }  # fmt: skip
    losses: dict[str, list[float]] = {}

    def checked() -> dict[str, Callable[[], Any]]:
        programs, missing = make(recipes)
        losses.update(first_losses(programs))
        wrong = differences(losses)
        for program, row in rows.items():
            row.wrong, row.missing = wrong.get(program, ""), missing.get(program, "")
        return {program: run for program, run in programs.items() if program not in wrong}

    return Piece(rows, checked, turns=TURNS, sparing=True), losses


def measure(
    name: str,
    recipes: Mapping[str, Callable[[], Any]],
    batch: int,
    rounds: int,
    calibration: interleaved.Calibration | None = None,
) -> tuple[list[Row], dict[str, list[float]]]:
    """Rows of the programs, with so many turns of each or a few more, and their first losses."""
    made, losses = piece(name, recipes, batch)
    sweep([made], rounds, interleaved.Calibration() if calibration is None else calibration)
    return made.rows, losses
