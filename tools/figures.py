"""Draws what the README shows, from a run folder and a result file; nothing in it is typed in by hand.

    python tools/figures.py RUN RESULT.json

RUN: a run folder of `gan-fast train`; its samples and loss curves go to docs/. RESULT: a file of
benchmarks/train_step.py; its table replaces what stands between the two markers in README.md.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import gan_fast
from gan_fast.training import pictures

ROOT = Path(__file__).resolve().parent.parent
START, END = "<!-- speed table: tools/figures.py -->", "<!-- end of the speed table -->"
COLUMNS, ROWS = 16, 8


def speed_table(result: dict[str, Any], source: str) -> str:
    """The result file as Markdown, with the machine and the versions that it names."""
    machine = result["machine"]
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
            cells.append(f"{1e3 * seconds:.0f} ({times[baseline]['seconds'] / seconds:.2f}x)")
        lines.append(f"| {program} | {' | '.join(cells)} |")
    lines.append("")
    lines.append(
        f"Medians of programs that took turns in one process, fp32; ratios to {baseline}. Machine: {machine['cpu']}, "
        f"{machine['threads']} threads, level {machine['level']}; torch {machine['torch']}, gan_fast "
        f"{machine['gan_fast']} at {machine['commit']}. Made by `python benchmarks/train_step.py`; "
        f"figures: [{Path(source).name}]({source})."
    )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("result", type=Path)
    arguments = parser.parse_args()
    docs = ROOT / "docs"
    docs.mkdir(exist_ok=True)
    trainer = gan_fast.Trainer.load(arguments.run)
    pictures.save_grid(trainer.sample(COLUMNS * ROWS, seed=0), docs / "mnist_samples.png", COLUMNS)
    shutil.copyfile(arguments.run / "loss_curves.png", docs / "mnist_loss_curves.png")
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    if START not in text or END not in text:
        sys.stderr.write(f"README.md has no '{START}' ... '{END}' to write the table between\n")
        return 1
    before, rest = text.split(START, 1)
    after = rest.split(END, 1)[1]
    source = arguments.result.resolve().relative_to(ROOT).as_posix()
    table = speed_table(json.loads(arguments.result.read_text(encoding="utf-8")), source)
    readme.write_text(f"{before}{START}\n{table}\n{END}{after}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
