#!/usr/bin/env python3
"""Everything that is to be known about a GPU, in one command and inside a given time.

    python benchmarks/gpu_suite.py --out DIR [--minutes 9]       # on the GPU machine; again to go on where it stopped
    python benchmarks/gpu_suite.py --out DIR --device cpu --tiny # a dry run of every stage without a GPU

Needs PyTorch; Triton for our kernels, numpy for the Trainer's rows; nothing else of this package's requirements, and
nothing of it installed; no network. In order: PyTorch's own figures,
the checks of our kernels against float64, our figures where the checks are green, then whatever is left. Results:
DIR/gpu_suite.jsonl (as they come), DIR/gpu_suite.json and DIR/gpu_suite.txt (the table, also printed last), and traces
of the profiler. A speed whose check is red or missing is not told. The parts are in benchmarks/gpu/.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]  # the package from the clone: nothing need be installed

#: Seconds kept for writing the results.
CLOSING = 6.0


def arguments_of(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--minutes", type=float, default=9.0, help="time for everything (default: 9)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes: a dry run whose times mean nothing")
    parser.add_argument("--commit", help="what to call the source where there is no git")
    only = "only tasks whose name begins so (step/torch/article, check, ...); may be repeated"
    parser.add_argument("--only", action="append", metavar="STAGE", help=only)
    parser.add_argument("--list", action="store_true", help="print the names of the tasks in order, and end")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--phase", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--deadline", type=float, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def environment(device: str) -> dict[str, str]:
    """The workers' environment: no table of `gan-fast tune`; on a CPU Triton's kernels run in its interpreter."""
    found = {**os.environ, "GAN_FAST_TABLE": "shipped"}
    if device == "cpu":
        found |= {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    else:
        found.pop("TRITON_INTERPRET", None)
    found.pop("GAN_FAST_BACKEND", None)
    return found


def planned(arguments: argparse.Namespace) -> tuple[Any, list[Any], list[Any]]:
    """(settings, tasks, phases) of a run."""
    from gpu import plan
    from gpu.device import Settings

    settings = Settings(arguments.device, arguments.tiny, arguments.out)
    tasks = plan.all_tasks(settings)
    if arguments.only:
        tasks = [task for task in tasks if task.key.startswith(tuple(arguments.only))]
    return settings, tasks, plan.phases(settings)


def worker(arguments: argparse.Namespace) -> int:
    """One process's share of a phase."""
    from gpu import device
    from gpu.journal import Journal
    from gpu.tasks import select, work

    settings, tasks, phases = planned(arguments)
    device.prepare(settings)
    phase = phases[arguments.phase]
    share = select(tasks, phase)[arguments.worker :: phase.workers]
    journal = Journal(arguments.out)
    return work(share, journal, arguments.deadline, arguments.worker, say=lambda line: print(line, flush=True))


def supervise(arguments: argparse.Namespace) -> None:
    """Run the phases, each in workers of its own, and write the results."""
    begun = time.time()
    deadline = begun + 60 * arguments.minutes - CLOSING
    # Where Triton is interpreted it must be known before it is imported, here too.
    os.environ.update(environment(arguments.device))
    import machine
    import torch
    from gpu import build, device, report
    from gpu.journal import Journal
    from gpu.supervise import Phases
    from gpu.tasks import select

    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device: got 'cuda', but PyTorch sees no CUDA device; --device cpu --tiny is a dry run")
    settings, tasks, phases = planned(arguments)
    arguments.out.mkdir(parents=True, exist_ok=True)
    journal = Journal(arguments.out, device.identity(settings, arguments.commit or machine.commit()))
    journal.close_cut_line()
    if journal.aside is not None:
        print(f"results of another device, version or source are now in {journal.aside.name}")
    wanted = [name for name in build.MODULES if build.key_of(name) not in journal.done]
    building = [build.Build(name, arguments.tiny, arguments.out) for name in wanted]
    stages = {task.key: task.stage for task in tasks}
    supervisor = Phases(journal, lambda key: stages.get(key, "unknown"), environment=environment(arguments.device))

    def leave(number: int, _: Any) -> None:
        raise KeyboardInterrupt(f"signal {number}")

    signal.signal(signal.SIGTERM, leave)
    forwarded = ["--out", str(arguments.out), "--device", arguments.device]
    forwarded += ["--tiny"] if arguments.tiny else []
    forwarded += [word for stage in arguments.only or () for word in ("--only", stage)]
    try:
        for number, phase in enumerate(phases):
            if all(task.key in journal.done for task in select(tasks, phase)):
                continue
            end = begun + (deadline - begun) * phase.until
            print(f"--- {phase.name}: until {end - begun:.0f} s, {phase.workers} at a time", flush=True)

            def command(worker: int, number: int = number, end: float = end) -> list[str]:
                own = ["--worker", str(worker), "--phase", str(number), "--deadline", str(end)]
                return [sys.executable, __file__, *forwarded, *own]

            supervisor.run(command, phase.workers, deadline)
    except KeyboardInterrupt as stopped:
        print(f"stopped: {stopped or 'from the keyboard'}; what was found is written", flush=True)
    finally:
        supervisor.stop()
    journal.reload()
    for one in building:
        journal.end(one.key, build.STAGE, one.result(deadline - time.time()))
    pending = Counter(task.stage for task in tasks if task.key not in journal.done)
    rows = report.enriched(journal.rows())
    report.write(arguments.out / "gpu_suite.json", journal.identity, rows, pending)
    text = report.table(journal.identity, rows, pending)
    (arguments.out / "gpu_suite.txt").write_text(text + "\n", encoding="utf-8")
    print(f"--- {time.time() - begun:.0f} s\n\n{text}", flush=True)


def main(argv: list[str] | None = None) -> int:
    arguments = arguments_of(argv)
    if arguments.list:
        from gpu.tasks import select

        _, tasks, phases = planned(arguments)
        for phase in phases[:-1]:
            for task in select(tasks, phase):
                print(f"{phase.name:8s} {task.rank} {task.key}")
        return 0
    if arguments.worker is not None:
        return worker(arguments)
    supervise(arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
