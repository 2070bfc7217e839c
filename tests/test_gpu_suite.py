"""benchmarks/gpu_suite.py: the order, the time, what a kill costs, and that no wrong kernel gets a speed.

Nothing here needs Triton or a GPU; the whole dry run, marked slow, takes Triton's interpreter where it is installed.
"""

from __future__ import annotations

import importlib.util
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "benchmarks"))

from gpu import cuda_module, device, journal, kernels, plan, supervise, tasks  # noqa: E402  # the folder is no package of the library

IDENTITY = {"device": "a device", "versions": {"torch": "1"}, "commit": "abc", "source": "def", "tiny": True}
CUDA = device.Settings("cuda", False, Path("nowhere"))
TINY = device.Settings("cpu", True, Path("nowhere"))


@pytest.fixture
def book(tmp_path: Path) -> journal.Journal:
    return journal.Journal(tmp_path, IDENTITY)


def timed(what: str = "a thing", check: str = "green", seconds: float = 1e-3, **more: Any) -> journal.Row:
    return journal.row(what, check=check, seconds=seconds, tflops=5.0, share=0.5, dtype="bf16", batch=2, **more)


def task(key: str, rank: int = 1, run: Any = None, stage: str = "layer/ours", **more: Any) -> tasks.Task:
    return tasks.Task(key, stage, rank, run or (lambda: [timed(key)]), **more)


# ----------------------------------------------------------------------------------------------------------- journal


@pytest.mark.parametrize("check", ["green", "baseline", "red", "unchecked"])
def test_only_a_trusted_check_lets_a_speed_through(check: str, book: journal.Journal) -> None:
    book.end("key", "layer/ours", [timed(check=check)])
    (kept,) = journal.Journal(book.path.parent).rows()
    assert set(journal.FIELDS) <= set(kept)
    assert (kept["device"], kept["commit"], kept["versions"]) == ("a device", "abc", {"torch": "1"})
    if check in ("green", "baseline"):
        assert kept["seconds"] == 1e-3 and kept["tflops"] == 5.0 and kept["state"] == "done"
    else:
        assert kept["seconds"] is None and "tflops" not in kept and "share" not in kept and kept["state"] == "refused"


def test_a_check_has_a_known_state() -> None:
    with pytest.raises(ValueError, match="check: got 'greenish', expected one of green, baseline, red, unchecked"):
        journal.row("x", check="greenish")


def test_a_line_that_a_kill_cut_off_costs_that_line_only(book: journal.Journal) -> None:
    book.end("first", "s", [timed()])
    with book.path.open("a") as file:
        file.write('{"end": "second", "rows": [{"what"')
    again = journal.Journal(book.path.parent, IDENTITY)
    again.close_cut_line()
    assert list(again.done) == ["first"]
    again.end("third", "s", [timed()])
    assert list(journal.Journal(book.path.parent).done) == ["first", "third"]


def test_results_of_another_source_are_set_aside(book: journal.Journal) -> None:
    book.end("first", "s", [timed()])
    assert journal.Journal(book.path.parent, IDENTITY).done.keys() == {"first"}
    other = journal.Journal(book.path.parent, {**IDENTITY, "source": "new"})
    assert other.done == {} and other.aside is not None and "first" in other.aside.read_text()


def test_verdict_of_several_checks(book: journal.Journal) -> None:
    for key, check in (("good", "green"), ("bad", "red"), ("none", "unchecked")):
        book.end(key, "check", [journal.row(key, check="green"), journal.row(key, check=check)])
    found = {keys: book.verdict(keys) for keys in ((), ("good",), ("good", "absent"), ("absent", "bad"), ("none",))}
    assert list(found.values()) == ["green", "green", "unchecked", "red", "unchecked"]


# ------------------------------------------------------------------------------------------------------------- tasks


def test_most_important_first_and_each_once(book: journal.Journal) -> None:
    ran: list[str] = []
    made = [
        task(key, rank, lambda key=key: ran.append(key) or [timed()]) for key, rank in (("c", 3), ("a", 1), ("b", 1))
    ]
    chosen = tasks.select([*made, task("other", stage="trace")], tasks.Phase("p", ("layer/ours",), 1.0))
    assert tasks.work(chosen, book, time.time() + 60, say=lambda line: None) == tasks.THROUGH
    assert ran == ["a", "b", "c"]
    again = journal.Journal(book.path.parent)
    assert tasks.work(chosen, again, time.time() + 60, say=lambda line: None) == tasks.THROUGH
    assert ran == ["a", "b", "c"]


def test_nothing_starts_that_would_not_end_in_time(book: journal.Journal) -> None:
    now = [100.0]

    def spend(seconds: float) -> Any:
        def run() -> list[journal.Row]:
            now[0] += seconds
            return [timed()]

        return run

    made = [
        task("a", run=spend(5), estimate=5),
        task("b", run=spend(30), estimate=30),
        task("c", run=spend(4), estimate=4),
    ]
    tasks.work(made, book, 110.0, say=lambda line: None, clock=lambda: now[0])
    assert list(book.done) == ["a", "c"] and now[0] == 109.0


def test_a_red_check_gets_no_speed_and_a_missing_one_waits(book: journal.Journal) -> None:
    book.end("check/bad", "check", [journal.row("bad", check="red")])
    never = pytest.fail
    made = [task("x", run=never, needs=("check/bad",)), task("y", run=never, needs=("check/later",)), task("z")]
    tasks.work(made, book, time.time() + 60, say=lambda line: None)
    (refused,) = book.done["x"]
    assert refused["check"] == "red" and refused["seconds"] is None and refused["state"] == "refused"
    assert "check/bad" in refused["reason"] and "y" not in book.done and book.done["z"][0]["seconds"] is not None


def test_an_error_costs_one_task_and_a_broken_device_the_process(book: journal.Journal) -> None:
    def broken(text: str) -> Any:
        def run() -> list[journal.Row]:
            raise RuntimeError(text)

        return run

    made = [
        task("memory", run=broken("CUDA out of memory")),
        task("after"),
        task("wild", run=broken("CUDA error: an illegal memory access was encountered"), stage="check"),
        task("never"),
    ]
    assert tasks.work(made, book, time.time() + 60, say=lambda line: None) == tasks.BROKEN
    assert list(book.done) == ["memory", "after", "wild"]
    assert [rows[0]["check"] for rows in book.done.values()] == ["unchecked", "green", "red"]


# --------------------------------------------------------------------------------------------------------- supervise

SCRIPT = """
import os, sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from gpu.journal import Journal, row
from gpu.tasks import Task, work

def good(): return [row("good", check="baseline", seconds=1.0)]
def dies(): os.kill(os.getpid(), 9)
def hangs(): time.sleep(60)
def breaks(): raise RuntimeError("CUDA error: misaligned address")
runs = {"a": good, "dies": dies, "b": good, "hangs": hangs, "breaks": breaks, "c": good}
made = [Task(key, "layer/torch", 1, run, estimate=0.0, limit=0.5) for key, run in runs.items()]
sys.exit(work(made, Journal(Path(sys.argv[2])), float(sys.argv[3])))
"""


def test_a_death_a_hang_and_a_broken_device_cost_one_task_each(book: journal.Journal, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    said: list[str] = []
    end = time.time() + 30
    command = [sys.executable, str(script), str(ROOT / "benchmarks"), str(tmp_path), str(end)]
    phases = supervise.Phases(book, lambda key: "layer/torch", said.append)
    phases.run(lambda worker: command, 1, end)
    book.reload()
    assert list(book.done) == ["a", "dies", "b", "hangs", "breaks", "c"] and not phases.processes
    reasons = {key: rows[0].get("reason", "") for key, rows in book.done.items()}
    assert "code -9" in reasons["dies"] and "took over" in reasons["hangs"] and "misaligned" in reasons["breaks"]
    assert all(book.done[key][0]["seconds"] == 1.0 for key in "abc")


def test_a_task_that_meets_the_end_of_the_run_stays_open(book: journal.Journal, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.replace("limit=0.5", "limit=60").replace('"dies": dies, ', ""))
    end = time.time() + 1.5 - supervise.GRACE  # the grace is for what starts before the end
    command = [sys.executable, str(script), str(ROOT / "benchmarks"), str(tmp_path), str(end + 60)]
    begun = time.time()
    supervise.Phases(book, lambda key: "layer/torch", lambda line: None).run(lambda worker: command, 1, end)
    assert time.time() - begun < 10
    book.reload()
    assert "hangs" not in book.done


# -------------------------------------------------------------------------------------------------------------- plan


@pytest.fixture(scope="module")
def all_tasks() -> list[tasks.Task]:
    found = [*plan.baseline_tasks(CUDA), *plan.check_tasks(CUDA), *plan.graph_tasks(CUDA), *plan.our_tasks(CUDA)]
    return [*found, *cuda_module.tasks(CUDA)]


def test_pytorch_first_then_checks_then_ours(all_tasks: list[tasks.Task]) -> None:
    phases = plan.phases(CUDA)
    order = [tasks.select(all_tasks, phase) for phase in phases]
    assert [phase.until for phase in phases] == sorted(phase.until for phase in phases) and phases[-1].until == 1.0
    assert [t.key for t in order[0][:2]] == ["ceiling/copy", "ceiling/gemm/bf16"]
    assert {t.stage for t in order[0]} == {"ceiling", "step/torch", "layer/torch"}
    assert {t.stage.split()[0] for t in order[1]} == {"check"}
    assert {t.stage for t in order[2]} == {"layer/ours", "step/ours", "trace", "cuda"}
    assert {t.key for t in order[-1]} == {t.key for t in all_tasks}
    # Where something is timed nothing else may run.
    assert all(phase.workers == 1 for phase in phases if phase.name != "checks")
    steps_of_torch = [t.key for t in order[0] if t.key.startswith("step/torch/") and t.batch]
    assert steps_of_torch[0] == "step/torch/article/128/eager/bf16/channels_last"


def test_everything_asked_for_is_in_the_plan(all_tasks: list[tasks.Task]) -> None:
    keys = {t.key for t in all_tasks}
    assert len(keys) == len(all_tasks)
    for network in ("article", "dcgan64"):
        for batch in (16, 64, 128, 1024, 4096, 8192):
            start = f"step/torch/{network}/{batch}"
            wanted = {"eager/fp32/NCHW", "eager/tf32/channels_last", "eager/bf16/channels_last",
                      "compile/bf16/channels_last", "compile-max-autotune-graph/bf16/channels_last"}  # fmt: skip
            assert {f"{start}/{program}" for program in wanted} <= keys
            wanted = {"Trainer-triton", "Trainer-triton-graph", "Trainer-auto-graph"}
            assert {f"step/ours/{network}/{batch}/{program}/bf16/channels_last" for program in wanted} <= keys
    from gan_fast.suite.shapes import SHAPES

    for shape in SHAPES:
        for name in ("bf16", "tf32", "fp32"):
            assert {f"layer/ours/{shape.name}/{name}", f"check/layer/{shape.name}/{name}"} <= keys
            layouts = ("NCHW", "channels_last") if shape.rank == 2 else ("NCHW",)
            assert {f"layer/torch/{shape.name}/{name}/{layout}" for layout in layouts} <= keys
    assert {"cuda/module", "check/race/conv/bf16", "check/elementwise/fp32", "check/graph/long"} <= keys


@pytest.mark.parametrize("settings", [CUDA, TINY], ids=["cuda", "dry run"])
def test_no_figure_of_ours_without_its_checks(settings: device.Settings) -> None:
    checks = {t.key for t in (*plan.check_tasks(settings), *plan.graph_tasks(settings))}
    ours = [t for t in plan.our_tasks(settings) if "/Trainer-triton/" in t.key or t.stage == "layer/ours"]
    assert len(ours) > 5
    for t in ours:
        assert len(t.needs) >= 2 and set(t.needs) <= checks, t.key
        assert f"check/race/conv/{t.dtype}" in t.needs
    graphs = [t for t in plan.our_tasks(settings) if "-graph/" in t.key]
    assert len(graphs) >= 2
    for t in graphs:
        network, backend = t.key.split("/")[2 if t.key.startswith("step") else 1], t.key.split("Trainer-")[1]
        assert f"check/graph/{network}/{backend.split('-')[0]}/{t.dtype}" in set(t.needs) & checks, t.key


@pytest.mark.parametrize("settings", [CUDA, TINY], ids=["cuda", "dry run"])
def test_no_figure_of_the_cuda_module_without_its_checks(settings: device.Settings) -> None:
    made = cuda_module.tasks(settings)
    checks = {t.key for t in made if t.stage == cuda_module.STAGE}
    figures = [t for t in made if t.stage == cuda_module.FIGURES]
    assert figures and all(t.needs and set(t.needs) <= checks for t in figures)
    assert any("article" in t.key for t in figures)


def test_what_the_cuda_module_is_checked_with() -> None:
    """Every problem can be computed, and by the kernels' own limits they take all of them."""
    found = {which: cuda_module.problems(TINY, which) for which in ("conv", "bce")}
    wanted = {"conv few_out value", "conv line_one weight_grad", "conv article_to_one prologue", "conv wide_k9 value"}
    assert {*wanted, "conv_transpose from_one value", "conv_transpose ones weight_grad"} <= set(found["conv"])
    for calls in found.values():
        for call, tensors in calls.values():
            out = call("reference", **tensors)
            assert all(bool(t.isfinite().all()) for t in kernels.flat(out))
    rows = [*cuda_module.checked(TINY, "bf16", "conv"), *cuda_module.repeated(TINY, "bf16", "bce")]
    assert [(r["check"], r["state"]) for r in rows] == [("unchecked", "not built")] * 2


def test_a_machine_without_kernels_says_so_and_tells_no_speed(book: journal.Journal) -> None:
    found = [*plan.check_tasks(TINY), *plan.graph_tasks(TINY)]
    checks = plan.left_out(found, "triton is not installed")
    ours = [t for t in plan.our_tasks(TINY) if t.needs]
    tasks.work([*checks, *ours], book, time.time() + 60, say=lambda line: None)
    assert all(r["seconds"] is None and r["check"] == "unchecked" for r in book.rows())
    assert {t.key for t in ours} <= set(book.done)


# ----------------------------------------------------------------------------------------------------------- dry run


def bare(folder: Path, *absent: str) -> dict[str, str]:
    """The environment of processes that find no packages of these names, in ``folder``."""
    lines = [
        "import sys",
        "from importlib.machinery import PathFinder",
        "class Bare(PathFinder):",
        "    @classmethod",
        "    def find_spec(cls, name, *rest):",
        f"        return None if name.partition('.')[0] in {absent!r} else PathFinder.find_spec(name, *rest)",
        "sys.meta_path[sys.meta_path.index(PathFinder)] = Bare",
    ]
    folder.mkdir()
    (folder / "sitecustomize.py").write_text("\n".join(lines) + "\n")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}


def dry_run(folder: Path, *words: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        str(ROOT / "benchmarks" / "gpu_suite.py"),
        "--out",
        str(folder),
        "--device",
        "cpu",
        "--tiny",
        *words,
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=900, check=False, env=env)


#: What the library asks for beside PyTorch, and a bare GPU machine may not have.
ABSENT = ("PIL", "safetensors", "tqdm")


def test_training_needs_only_pytorch_and_numpy(tmp_path: Path) -> None:
    code = (
        "import sys, torch, gan_fast\n"
        f"for name in {ABSENT!r}:\n"
        "    try: __import__(name)\n"
        "    except ModuleNotFoundError: continue\n"
        "    sys.exit(f'{name} is there after all')\n"
        "networks = gan_fast.models.build('dcgan28')\n"
        "trainer = gan_fast.Trainer(*networks, batch_size=4, outdir=None, device='cpu', progress=False)\n"
        "print(float(trainer.train_step(torch.rand(4, 1, 28, 28) * 2 - 1).d_loss))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=bare(tmp_path / "bare", *ABSENT), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0 and float(done.stdout) > 0, done.stdout + done.stderr


# Each takes a minute where PyTorch has no instructions for bfloat16.
@pytest.mark.parametrize("absent", [(), pytest.param(("numpy",), marks=pytest.mark.slow)])
def test_a_bare_machine_runs_what_it_can_and_names_what_it_lacks(tmp_path: Path, absent: tuple[str, ...]) -> None:
    env = bare(tmp_path / "bare", *ABSENT, *absent)
    only = "step/torch/article/2/eager/fp32/NCHW", "step/ours/article/2/Trainer-auto/", "check/graph/article/auto/bf16"
    done = dry_run(tmp_path / "out", *(word for key in only for word in ("--only", key)), env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = json.loads((tmp_path / "out" / "gpu_suite.json").read_text())["rows"]
    by_stage = {row["stage"]: row for row in rows}
    assert by_stage["step/torch"]["seconds"] > 0 and not [row for row in rows if row["check"] == "red"]
    ours, graph = by_stage["step/ours"], by_stage["check"]
    if absent:
        for row in (ours, graph):
            assert (row["state"], row["reason"]) == ("skipped", plan.NO_TRAINER)
    else:
        assert ours["state"] != "failed" and graph["saved"] == "no: safetensors is not installed"


def test_nothing_of_the_package_need_be_installed(tmp_path: Path) -> None:
    """What the command imports first comes from the clone, wherever it is called, without an installation."""
    code = (
        "import runpy, sys\n"
        "sys.meta_path[:] = [finder for finder in sys.meta_path if 'editable' not in repr(finder)]\n"
        "runpy.run_path(sys.argv[1])\n"
        "import gan_fast, machine\n"
        "print(gan_fast.__file__)\n"
    )
    command = [sys.executable, "-c", code, str(ROOT / "benchmarks" / "gpu_suite.py")]
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=variables, check=False)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).parent == ROOT / "gan_fast"


@pytest.mark.slow
def test_the_whole_suite_on_a_cpu(tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = dry_run(tmp_path)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr[-3000:]
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 90
    content = json.loads((tmp_path / "gpu_suite.json").read_text())
    assert not content["not_reached"], content["not_reached"]
    rows = content["rows"]
    assert all(set(journal.FIELDS) <= set(r) for r in rows)
    stages = {
        "ceiling",
        "step/torch",
        "layer/torch",
        "check",
        "check cuda",
        "cuda",
        "layer/ours",
        "step/ours",
        "trace",
        "build",
    }
    assert {r["stage"] for r in rows} == stages
    assert not [r for r in rows if r["check"] == "red"], [
        (r["what"], r.get("reason")) for r in rows if r["check"] == "red"
    ]
    assert not [r for r in rows if r["state"] == "failed"]
    ours = [r for r in rows if r["stage"] == "layer/ours"]
    if importlib.util.find_spec("triton") is None:
        assert ours and all(r["check"] == "unchecked" and r["seconds"] is None for r in ours)
    else:
        assert ours and all(r["check"] == "green" and r["seconds"] > 0 for r in ours)
    assert done.stdout.rstrip().endswith((tmp_path / "gpu_suite.txt").read_text().rstrip())
    again = dry_run(tmp_path)
    assert again.returncode == 0 and "---" in again.stdout
    assert json.loads((tmp_path / "gpu_suite.json").read_text()) == content
