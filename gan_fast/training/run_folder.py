"""The run folder ``OUT/00007-name/``: what lies where, and how a checkpoint is found again.

config.json  env.json  stats.jsonl  loss_curves.png  events.out.tfevents.* (with tensorboard)  latest
samples/reals.png  samples/fakes_000200.png
checkpoints/step_00005000/{generator,discriminator}.safetensors, trainer_state.pt, config.json, manifest.json
"""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

from . import checkpoint, files
from .checkpoint import Checkpoint
from .errors import CheckpointError
from .statistics import StatsFile

__all__ = ["RunFolder", "find_run", "load_checkpoint", "runs_in"]

logger = logging.getLogger(__name__)

_RUN = re.compile(r"(\d{5,})-(.+)")
_STEP = re.compile(r"step_(\d{8,})")
_LATEST = "latest"
_CHECKPOINTS = "checkpoints"
_REMEDY = "Give another outdir (--outdir), or outdir=None to write nothing"


class RunFolder:
    """One run's folder.

    Args:
        path: an existing folder; use `create` for a new one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoints = path / _CHECKPOINTS
        self.samples = path / "samples"
        self.stats = StatsFile(path / "stats.jsonl")

    @classmethod
    def create(cls, outdir: Path, name: str) -> RunFolder:
        """Make the next numbered folder in ``outdir``.

        Raises:
            OutputError: ``outdir`` cannot be written.
        """
        with files.output_errors("a run folder", outdir, _REMEDY):
            outdir.mkdir(parents=True, exist_ok=True)
            number = 1 + max((number for number, _, _ in runs_in(outdir)), default=-1)
            while True:
                path = outdir / f"{number:05d}-{name}"
                try:
                    path.mkdir()
                    break
                except FileExistsError:  # another process was faster
                    number += 1
        return cls(path)

    def prepare(self, step: int) -> None:
        """Make the sub-folders, clear up behind a killed process, and cut stats.jsonl back to ``step``."""
        with files.output_errors("the run folder", self.path, _REMEDY):
            for folder in (self.checkpoints, self.samples):
                folder.mkdir(exist_ok=True)
            for folder in (self.path, self.checkpoints, self.samples):
                for name in files.remove_leftovers(folder):
                    logger.info("cleared up %s, which a killed process left in %s", name, folder)
            self.stats.cut_back(step)

    def write_json(self, name: str, value: Any) -> None:
        """Write config.json or env.json as a whole."""
        with files.output_errors(name, self.path, _REMEDY):
            files.replace_file(self.path / name, (json.dumps(value, indent=2) + "\n").encode())

    def read_json(self, name: str) -> Any:
        """Read config.json or env.json; None if it is not there.

        Raises:
            CheckpointError: the file is damaged.
        """
        try:
            return json.loads((self.path / name).read_bytes())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise CheckpointError(f"{self.path / name} is damaged: {error}") from error

    def save(self, keep_last: int | None, *, step: int, **contents: Any) -> Path:
        """Write ``checkpoints/step_...``, point ``latest`` at it, then delete the oldest ones beyond ``keep_last``."""
        folder = self.checkpoints / f"step_{step:08d}"
        remedy = f"The training itself is unharmed, at step {step}: make room, or use trainer.save(another_folder)"
        with files.output_errors("stats.jsonl", self.path, remedy):
            self.stats.flush()
        checkpoint.write(folder, step=step, **contents)
        with files.output_errors("the pointer to the latest checkpoint", self.path, remedy):
            files.replace_file(self.path / _LATEST, f"{_CHECKPOINTS}/{folder.name}\n".encode())
            if keep_last is not None:
                older = [place for number, place in self._steps() if number < step]
                for place in older[: max(0, len(older) - keep_last + 1)]:
                    files.remove_folder(place)
        return folder

    def candidates(self) -> list[Path]:
        """Checkpoint folders in the order in which they are tried: the one that ``latest`` names, then from new to
        old."""
        newest_first = [place for _, place in reversed(self._steps())]
        try:
            latest = self.path / (self.path / _LATEST).read_text().strip()
        except (OSError, UnicodeDecodeError):
            return newest_first
        # Steps beyond the pointer are of an earlier history of this run, or were finished just before a kill.
        return sorted(newest_first, key=lambda place: (place != latest, place.name > latest.name))

    def _steps(self) -> list[tuple[int, Path]]:
        if not self.checkpoints.is_dir():
            return []
        found = ((_STEP.fullmatch(place.name), place) for place in self.checkpoints.iterdir())
        return sorted((int(match[1]), place) for match, place in found if match and place.is_dir())


def runs_in(outdir: Path) -> list[tuple[int, str, Path]]:
    """The run folders in ``outdir``: (number, name, path), by number."""
    if not outdir.is_dir():
        return []
    found = ((_RUN.fullmatch(place.name), place) for place in outdir.iterdir())
    return sorted((int(match[1]), match[2], place) for match, place in found if match and place.is_dir())


def find_run(outdir: Path, name: str) -> RunFolder | None:
    """The newest run of that name, for ``resume="auto"``."""
    paths = [path for _, found, path in runs_in(outdir) if found == name]
    return RunFolder(paths[-1]) if paths else None


def load_checkpoint(folder: Path) -> tuple[Checkpoint, RunFolder | None]:
    """Read a run folder's last good checkpoint, or the checkpoint folder itself.

    In a run folder a damaged checkpoint is passed over, with a warning, for the last one that verifies.

    Returns:
        The checkpoint, and the run folder that it lies in, if any.

    Raises:
        FileNotFoundError: no such folder.
        CheckpointError: nothing usable there; the text names the file that is at fault.
    """
    if (
        checkpoint.is_checkpoint(folder)
        or files.retired(folder) is not None
        or (folder.is_dir() and _STEP.fullmatch(folder.name))
    ):
        inside = folder.absolute().parent
        run = RunFolder(inside.parent) if inside.name == _CHECKPOINTS and _STEP.fullmatch(folder.name) else None
        return checkpoint.read(folder), run
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: there is no such folder; expected a run folder or a checkpoint folder")
    run = RunFolder(folder)
    if not run.checkpoints.is_dir():
        runs = [path.name for _, _, path in runs_in(folder)]
        hint = (
            f"it holds the runs {', '.join(runs)}: name one of them" if runs else "expected one such as runs/00000-NAME"
        )
        raise CheckpointError(f"{folder} is neither a run folder nor a checkpoint folder; {hint}")
    damaged: list[str] = []
    for place in run.candidates():
        try:
            found = checkpoint.read(place)
        except CheckpointError as error:
            logger.warning("%s; trying the checkpoint before it", error)
            damaged.append(str(error))
            continue
        if damaged:
            logger.warning("using %s, the last good checkpoint", place)
        return found, run
    if damaged:
        raise CheckpointError(f"{folder} has no good checkpoint: {'; '.join(damaged)}")
    raise CheckpointError(f"{folder} has no checkpoint yet: the run ended before its first one (save_every)")
