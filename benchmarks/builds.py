"""Two builds of gan_fast against each other: is a change faster, and where is it slower?

    git worktree add ../before COMMIT && (cd ../before && python setup.py build_ext --inplace)
    python benchmarks/builds.py ../before --match article_g     # layers, pass by pass
    python benchmarks/builds.py ../before --match k4x4s2 --pass weight_grad --precision bf16
    python benchmarks/builds.py ../before --step article:128:gan_fast.Trainer  # a training step

Two builds cannot share a process, so each has one of its own, and they take turns: both run the same call for some
milliseconds, one after the other, many times over. What is compared are the two times of a turn, so that a machine
that drifts meets both alike. A ratio above 1 says that the build that this file belongs to is faster. Builds whose
results differ by their norms get no times.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PASSES = ("forward", "input_grad", "weight_grad")
#: Seconds that a turn lasts at least.
SHORTEST = 0.02
#: Seconds between turns: the threads of OpenMP wait for more work by spinning, and would take a core from the next one.
PAUSE = 0.008
#: Of the norms of results, relative: rounding, of bfloat16 too, in a step's losses and in single passes.
LARGEST_DIFFERENCE = 1e-2


class Build:
    """A process that runs calls with the build in `tree`."""

    def __init__(self, tree: Path) -> None:
        self.tree = tree
        others = os.environ.get("PYTHONPATH")
        path = os.pathsep.join([str(tree), *([others] if others else [])])
        environment = {**os.environ, "PYTHONPATH": path, "GAN_FAST_TABLE": "shipped"}
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._process = subprocess.Popen([sys.executable, __file__, "--serve"], env=environment, **pipes)
        found = self.ask(do="tell")
        if Path(found["package"]) != tree / "gan_fast" or not found["extension"]:
            self.close()
            raise SystemExit(f"{tree}: expected gan_fast with its extension built, got {found}")

    def ask(self, **what: Any) -> Any:
        """Send an order to `serve` and return its answer."""
        assert self._process.stdin is not None and self._process.stdout is not None
        print(json.dumps(what), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit(f"the build in {self.tree} stopped at {what}")
        return json.loads(answer)

    def close(self) -> None:
        """Let the process end."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def serve() -> None:
    """Answer orders from the standard input with the gan_fast that this process imports."""
    for line in sys.stdin:
        order = json.loads(line)
        if order["do"] == "tell":
            print(json.dumps(_told()), flush=True)
            continue
        repeats, found = order.get("repeats", 1), {}
        if order["do"] == "make":
            run = _made(order)
            results = run()
            found["norms"] = [_norm(result) for result in (results if isinstance(results, tuple) else (results,))]
            run()
        start = time.perf_counter()
        for _ in range(repeats):
            run()
        found["seconds"] = (time.perf_counter() - start) / repeats
        print(json.dumps(found), flush=True)


def _told() -> dict[str, Any]:
    import gan_fast
    from gan_fast import backends

    assert gan_fast.__file__ is not None
    return {"package": str(Path(gan_fast.__file__).parent), "extension": backends.extension() is not None}


def _norm(result: Any) -> float:
    import torch

    return torch.as_tensor(result).double().norm().item()


def _made(order: dict[str, Any]) -> Callable[[], Any]:
    import torch

    from gan_fast.suite import layers, steps
    from gan_fast.suite.shapes import LayerShape

    if "step" in order:
        network, batch, program = order["step"].split(":")
        recipes = steps.recipes(steps.networks(network), *steps.inputs(network, int(batch)), bf16=True)
        return recipes[program]()
    facts = {name: tuple(value) if isinstance(value, list) else value for name, value in order["layer"].items()}
    dtype = torch.bfloat16 if order["precision"] == "bf16" else torch.float32
    layout = layers.FORMATS[order["format"]]
    return layers.run_of(LayerShape(**facts), order["backend"], order["which"], layout, dtype)


def cases(arguments: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, order to make it) of all that is to be compared."""
    from gan_fast.suite.shapes import select

    for step in arguments.step:
        yield step, {"step": step}
    if arguments.step and not arguments.match:
        return
    for shape in select():
        if any(part not in shape.name for part in arguments.match):
            continue
        for which in arguments.which or PASSES:
            order = {"layer": dataclasses.asdict(shape), "which": which, "format": arguments.format}
            order.update(precision=arguments.precision, backend=arguments.backend)
            yield f"{shape.name} {which}", order


def compare(builds: tuple[Build, Build], name: str, order: dict[str, Any], rounds: int) -> dict[str, Any]:
    """Times of both builds, turn by turn."""
    first = [build.ask(do="make", **order) for build in builds]
    for one, other in zip(*(made["norms"] for made in first), strict=True):
        if not abs(one - other) <= LARGEST_DIFFERENCE * abs(one):
            raise SystemExit(f"{name}: norms {one} and {other} of the two builds' results; no times")
    repeats = max(1, round(SHORTEST / min(made["seconds"] for made in first)))
    warm = max(1, repeats // 4)
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(rounds):
        for which in (0, 1) if turn % 2 == 0 else (1, 0):
            time.sleep(PAUSE)
            builds[which].ask(do="run", repeats=warm)  # its data back into the caches, its threads awake
            times[which].append(builds[which].ask(do="run", repeats=repeats)["seconds"])
    lower, ratio, upper = statistics.quantiles([theirs / ours for theirs, ours in zip(*times, strict=True)], n=4)
    return {
        "seconds": [statistics.median(each) for each in times],
        "ratio": ratio,
        "quartiles": [lower, upper],
        "times": times,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, nargs="?", help="root of the other tree, with its extension built")
    parser.add_argument("--match", action="append", default=[], help="part of a layer's name; of several, all")
    parser.add_argument("--pass", dest="which", action="append", choices=PASSES, help="all if left out")
    parser.add_argument("--step", action="append", default=[], help="network:batch:program of gan_fast.suite.steps")
    parser.add_argument("--format", choices=("channels_last", "NCHW"), default="channels_last")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--backend", default="auto", help="of both builds; auto: each by its own rules")
    parser.add_argument("--rounds", type=int, default=11, help="turns of each build")
    parser.add_argument("--file", action="store_true", help="write a result file")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve()
        return
    if arguments.before is None:
        parser.error("name the tree to compare with")
    if arguments.rounds < 2:
        parser.error(f"--rounds: got {arguments.rounds}, expected at least 2, one for each order of the builds")
    before_commit = _commit_of(arguments.before) if arguments.file else ""
    builds = Build(arguments.before.resolve()), Build(ROOT)
    found = {}
    try:
        for name, order in cases(arguments):
            found[name] = compare(builds, name, order, arguments.rounds)
            before, after = (1e3 * each for each in found[name]["seconds"])
            lower, upper = found[name]["quartiles"]
            ratio = f"{found[name]['ratio']:6.3f} [{lower:.3f}, {upper:.3f}]"
            print(f"{ratio} {before:8.3f} {after:8.3f} ms  {name}", flush=True)
    finally:
        for build in builds:
            build.close()
    if not found:
        raise SystemExit("no layer has such a name")
    print(f"{statistics.geometric_mean(each['ratio'] for each in found.values()):6.3f} in the mean of {len(found)}")
    if arguments.file:
        _write(before_commit, arguments.precision, found)


def _commit_of(tree: Path) -> str:
    """Raises subprocess.CalledProcessError where `tree` is no checkout."""
    command = ["git", "describe", "--always", "--dirty"]
    return subprocess.run(command, cwd=tree, capture_output=True, text=True, check=True).stdout.strip()


def _write(before: str, precision: str, found: dict[str, Any]) -> None:
    import machine

    path = machine.result_file()
    path = path.with_name(path.stem + f"-builds-{precision}.json")
    content = {"machine": machine.describe(), "before": before, "precision": precision, "ratios": found}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
