"""Draws what the README shows, from run folders and committed result files; nothing in it is typed in by hand.

    make figures ARGS="[--run RUN] [--speed STEP.json] [--layers A.json] [--scaling B.json] [--report-shots C.json]
                  [--quality-time D.json]"

RUN: a run folder of `gan-fast train`; its samples and loss curves go to docs/. STEP: a file of
benchmarks/train_step.py. A, B, C: files of `gan-fast bench --json`: of the layers (`layers` or `full`; there is a place
for each of the levels avx2, avx512, avx512_bf16 and amx_bf16, the files of the last two made with --precision bf16), of
`scaling`, and one whose report a browser photographs. What each comes to replaces what stands between two markers in
README.md; what is not given is made again from the file that README.md names there (the photographs stay as they are).
The quality of training, its text and its picture, comes from all stored runs of benchmarks/quality.py; D is a file of
benchmarks/quality_time.py.
"""

from __future__ import annotations

import argparse
import functools
import json
import re
import shutil
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import gan_fast
from gan_fast.training import pictures

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "tools")]

import bench_figures  # noqa: E402  # a script of tools/, found by the line above
import quality  # noqa: E402  # and two of benchmarks/
import quality_time  # noqa: E402  # the second

Markers = tuple[str, str]
SPEED: Markers = ("<!-- speed table: tools/figures.py -->", "<!-- end of the speed table -->")
#: By the instruction level of the machine that was measured.
LAYERS: dict[str, Markers] = {
    level: (f"<!-- layers, {level}: tools/figures.py -->", f"<!-- end of the layers, {level} -->")
    for level in ("amx_bf16", "avx512_bf16", "avx512", "avx2")
}
LAYERS_BFLOAT16: dict[str, Markers] = {
    level: (f"<!-- layers, {level}, bfloat16: tools/figures.py -->", f"<!-- end of the layers, {level}, bfloat16 -->")
    for level in ("amx_bf16", "avx512_bf16")
}
SCALING: Markers = ("<!-- scaling: tools/figures.py -->", "<!-- end of scaling -->")
SHOTS: Markers = ("<!-- report: tools/figures.py -->", "<!-- end of the report -->")
QUALITY_TIME: Markers = ("<!-- quality against time: tools/figures.py -->", "<!-- end of quality against time -->")
QUALITY: Markers = ("<!-- quality: tools/figures.py -->", "<!-- end of quality -->")
COLUMNS, ROWS = 16, 8
#: Of the two programs, told apart by colour-blind readers too.
COLOURS = {"eager": "#0072b2", "gan_fast": "#d55e00"}


def speed_table(path: Path, docs: Path) -> str:
    """The result file as Markdown, with the machine and the versions that it names."""
    result = json.loads(path.read_text(encoding="utf-8"))
    machine, source = result["machine"], path.resolve().relative_to(ROOT).as_posix()
    allocators = list(result["results"])
    baseline = next(iter(result["results"][allocators[0]]["times"]))
    head = " | ".join(f"{name} allocator, ms (x)" for name in allocators)
    lines = [
        f"| one step of `{result['network']}`, batch {result['batch']} | {head} |",
        "|---|" + "---:|" * len(allocators),
    ]
    for program in result["results"][allocators[0]]["times"]:
        cells = []
        for allocator in allocators:
            times = result["results"][allocator]["times"]
            seconds = times[program]["seconds"]
            ratio = times[program].get("ratio", times[baseline]["seconds"] / seconds)  # older files have medians alone
            cells.append(f"{1e3 * seconds:.0f} ({ratio:.2f}x)")
        lines.append(f"| {program} | {' | '.join(cells)} |")
    lines.append("")
    lines.append(
        f"Medians of programs that took turns in one process, fp32 where they do not say bf16; ratios to {baseline}. "
        f"Machine: {machine['cpu']}, {machine['threads']} threads, level {machine['level']}; torch {machine['torch']}, "
        f"gan_fast {machine['gan_fast']} at {machine['commit']}. Made by `python benchmarks/train_step.py`; "
        f"figures: [{path.name}]({source})."
    )
    return "\n".join(lines)


def quality_text(classifier: str) -> str:
    """The comparison as Markdown."""
    found = quality.comparison(classifier)
    lines = ["| trained by | Fréchet distance of seeds 0, 1, 2 | mean |", "|---|---:|---:|"]
    names = {"eager": "eager PyTorch, channels_last", "gan_fast": "`gan-fast train`"}
    for program, distances in found.distances.items():
        lines.append(f"| {names[program]} | {', '.join(f'{d:.1f}' for d in distances)} | {found.mean(program):.1f} |")
    lines.append("")
    lines.append(
        f"The means differ by {abs(found.errors):.1f} standard errors ({found.difference:+.1f}). The bound that "
        "eager's seeds set for gan_fast's mean, their own plus three standard deviations, is "
        f"{found.bound:.1f}. 10,000 samples in the features of classifier {classifier[:8]} (benchmarks/classifiers); "
        "`python benchmarks/quality.py compare`."
    )
    return "\n".join(lines)


def quality_picture(classifier: str, path: Path) -> None:
    """Distance against training steps: a line for each stored run that has a curve."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
    for program, colour in COLOURS.items():
        runs = [run for run in quality.load(program, classifier) if run.get("curve")]
        for number, run in enumerate(runs):
            steps = [point["step"] for point in run["curve"]]
            distances = [point["frechet_distance"] for point in run["curve"]]
            label = f"{program}, {len(runs)} seeds" if number == 0 else None
            axes.plot(steps, distances, color=colour, alpha=0.8, linewidth=1.4, marker="o", markersize=3, label=label)
    axes.set_yscale("log")
    axes.set_yticks([100, 150, 200, 300, 400], ["100", "150", "200", "300", "400"])
    axes.minorticks_off()
    axes.set_xlabel("steps at batch 128 (five epochs of MNIST)")
    axes.set_ylabel("Fréchet distance")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def quality_over_time(path: Path, docs: Path) -> str:
    """Draw docs/quality_time.png, distance against training time; times to distances as Markdown."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    result = json.loads(path.read_text(encoding="utf-8"))
    runs, machine, settings = result["runs"], result["machine"], result["settings"]
    figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
    styles = zip(quality_time.PROGRAMS, ("#0072b2", "#56b4e9", "#e69f00", "#d55e00"), "os^D", strict=True)
    for name, colour, marker in styles:
        for number, run in enumerate(runs):
            seconds = [point["seconds"] for point in run[name]]
            distances = [point["frechet_distance"] for point in run[name]]
            label = f"{name}, {len(runs)} seeds" if number == 0 else None
            axes.plot(seconds, distances, color=colour, linewidth=1.2, marker=marker, markersize=3.5, label=label)
    axes.set_yscale("log")
    axes.set_xlabel(
        f"seconds of training (epochs: {settings['epochs']}, {settings['data']}, batch {settings['batch_size']})"
    )
    axes.set_ylabel("Fréchet distance")
    axes.grid(alpha=0.3, which="both")
    axes.legend(frameon=False)
    figure.savefig(docs / "quality_time.png", dpi=150)
    plt.close(figure)

    found = quality_time.times(runs)
    lines = [
        "![Fréchet distance against training time](docs/quality_time.png)",
        "",
        f"| time to a Fréchet distance, mean of {len(runs)} seeds | " + " | ".join(f"{d:g}" for d, _ in found) + " |",
        "|---|" + "---:|" * len(found),
    ]
    for name in quality_time.PROGRAMS:
        cells = []
        for _, taken in found:
            mean, base = statistics.mean(taken[name]), statistics.mean(taken[quality_time.BASELINE])
            cells.append(f"{mean:.0f} s ({base / mean:.1f}x)")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += [
        "",
        f"`{settings['model']}`; the programs took turns, only steps are timed, {settings['n']:,} samples are judged. "
        f"Machine: {machine['cpu']}, {machine['threads']} threads, level {machine['level']}; torch {machine['torch']}, "
        f"gan_fast {machine['gan_fast']} at {machine['commit']}. Made by `python benchmarks/quality_time.py`; "
        f"figures: [{path.name}]({path.resolve().relative_to(ROOT).as_posix()}).",
    ]
    return "\n".join(lines)


def split(text: str, markers: Markers) -> tuple[str, str, str]:
    """README's text before, between and after the markers.

    Raises:
        ValueError: it has no such markers.
    """
    start, end = markers
    if start not in text or end not in text:
        raise ValueError(f"README.md: expected '{start}' ... '{end}' to write between")
    before, rest = text.split(start, 1)
    return before, *rest.split(end, 1)


def put(text: str, markers: Markers, content: str) -> str:
    """README's text with this between the markers."""
    before, _, after = split(text, markers)
    return f"{before}{markers[0]}\n{content}\n{markers[1]}{after}"


def again(text: str, markers: Markers, given: Path | None, make: Callable[[Path, Path], str], docs: Path) -> str:
    """README's text with what `make` makes of the file that is given, or of the one that is named there now; as it was
    if there is neither."""
    named = re.search(r"\]\((benchmarks/results/[^)]+\.json)\)", split(text, markers)[1])
    if given is None and named is None:
        return text
    path = given if given is not None else ROOT / named[1]  # type: ignore[index]  # one of the two is there
    return put(text, markers, make(path, docs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--speed", type=Path)
    parser.add_argument("--layers", type=Path)
    parser.add_argument("--scaling", type=Path)
    parser.add_argument("--quality-time", type=Path)
    parser.add_argument("--report-shots", type=Path)
    arguments = parser.parse_args()
    given = None if arguments.layers is None else bench_figures.level(arguments.layers)
    if given is not None and given not in LAYERS:
        parser.error(f"--layers: the machine has level {given!r}, and README.md has places for {', '.join(LAYERS)}")
    docs = ROOT / "docs"
    docs.mkdir(exist_ok=True)
    if arguments.run is not None:
        trainer = gan_fast.Trainer.load(arguments.run)
        pictures.save_grid(trainer.sample(COLUMNS * ROWS, seed=0), docs / "mnist_samples.png", COLUMNS)
        shutil.copyfile(arguments.run / "loss_curves.png", docs / "mnist_loss_curves.png")
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    text = again(text, SPEED, arguments.speed, speed_table, docs)
    for level, markers in LAYERS.items():
        text = again(text, markers, arguments.layers if level == given else None, bench_figures.layers, docs)
    in_bfloat16 = functools.partial(bench_figures.layers, dtype="bfloat16")
    for level, markers in LAYERS_BFLOAT16.items():
        text = again(text, markers, arguments.layers if level == given else None, in_bfloat16, docs)
    text = again(text, SCALING, arguments.scaling, bench_figures.scaling, docs)
    if arguments.report_shots is not None:
        text = put(text, SHOTS, bench_figures.report_shots(arguments.report_shots, docs))
    text = again(text, QUALITY_TIME, arguments.quality_time, quality_over_time, docs)
    classifier = quality.kept_classifier()
    text = put(text, QUALITY, quality_text(classifier))
    quality_picture(classifier, docs / "mnist_quality.png")
    readme.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
