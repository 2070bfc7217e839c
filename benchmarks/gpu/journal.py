"""The record of a run: one JSON line when a task starts, one with its rows when it ends.

Lines are appended whole, by several processes at once; a line that a kill cut off is ignored. Whoever opens the journal
again finds which tasks are done. A row that reports a speed passes :func:`gate` first, and only there.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

NAME = "gpu_suite.jsonl"
#: States of a check under which a row may carry a speed. "baseline": PyTorch's own program, which is the yardstick.
TRUSTED = ("green", "baseline")
#: States of a check under which it may not. "unchecked": the check it depends on was not reached.
DISTRUSTED = ("red", "unchecked")
#: Fields of a row that tell a speed.
SPEEDS = (
    "seconds", "quartiles", "wall_seconds", "device_seconds", "per_second", "tflops", "gbytes_per_second", "share",
)  # fmt: skip
#: What every row names.
FIELDS = ("device", "versions", "commit", "stage", "what", "dtype", "batch", "seconds", "check")

Row = dict[str, Any]


def row(
    what: str, *, check: str, seconds: float | None = None, dtype: str | None = None, batch: int | None = None,
    state: str = "done", **more: Any,
) -> Row:  # fmt: skip
    """What a task found: one measured or checked thing.

    Args:
        what: says what was run.
        check: one of TRUSTED or DISTRUSTED.
        seconds: of one run; None for what has no time.
        dtype: "fp32", "tf32", "bf16" or "fp16".
        batch: samples in a run.
        state: "done", "failed", "skipped", "not built" or "refused".
        more: anything else worth knowing.
    """
    if check not in TRUSTED + DISTRUSTED:
        raise ValueError(f"check: got {check!r}, expected one of {', '.join(TRUSTED + DISTRUSTED)}")
    return {
        "what": what,
        "dtype": dtype,
        "batch": batch,
        "seconds": seconds,
        "check": check,
        "state": state,
        **more,
    }


def gate(found: Mapping[str, Any]) -> Row:
    """The row without its speeds if its check is not trusted."""
    kept = dict(found)
    if kept["check"] not in TRUSTED:
        if kept["seconds"] is not None and kept["state"] == "done":
            kept["state"] = "refused"
        kept = {key: value for key, value in kept.items() if key not in SPEEDS}
        kept["seconds"] = None
    return kept


def _free_name(path: Path) -> Path:
    """Where an older journal goes."""
    number = 1
    while (found := path.with_name(f"{path.stem}-before-{number}.jsonl")).exists():
        number += 1
    return found


class Journal:
    """The journal in a folder.

    Attributes:
        identity: device, versions, commit and source of everything in it.
        done: key of a task -> its rows.
        running: worker -> (key, when it started, its limit in seconds) of tasks without an end.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any] | None = None) -> None:
        """Open the journal of a folder.

        Args:
            folder: made if need be.
            identity: of this run; a journal with another one is set aside under another name. None takes what is there.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / NAME
        self.identity: dict[str, Any] = {}
        self.done: dict[str, list[Row]] = {}
        self.running: dict[int, tuple[str, float, float]] = {}
        self.aside: Path | None = None
        self._read = 0
        self.reload()
        if identity is not None and self.identity != dict(identity):
            if self.path.exists():
                self.aside = _free_name(self.path)
                self.path.rename(self.aside)
                self.done, self.running, self._read = {}, {}, 0
            self._append({"identity": dict(identity)})
            self.reload()

    def reload(self) -> None:
        """Take in what was appended since, by this process or others."""
        if not self.path.exists():
            return
        with self.path.open("rb") as file:
            file.seek(self._read)
            text = file.read()
        whole = text.rfind(b"\n") + 1
        self._read += whole
        for line in text[:whole].splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue  # cut off by a kill, and closed by the next run's first line
            if "identity" in entry:
                self.identity = entry["identity"]
            elif "start" in entry:
                self.running[entry["worker"]] = (entry["start"], entry["time"], entry["limit"])
            elif "end" in entry:
                self.done[entry["end"]] = entry["rows"]
                for worker, (key, _, _) in list(self.running.items()):
                    if key == entry["end"]:
                        del self.running[worker]

    def close_cut_line(self) -> None:
        """End a line that a kill cut off, so that the next one stands alone; and forget who was running."""
        if self.path.exists() and self.path.stat().st_size and not self.path.read_bytes().endswith(b"\n"):
            with self.path.open("ab") as file:
                file.write(b"\n")
        self.reload()
        self.running.clear()

    def start(self, key: str, worker: int, limit: float) -> None:
        """Say that a worker begins a task."""
        self._append({"start": key, "worker": worker, "time": time.time(), "limit": limit})

    def end(self, key: str, stage: str, rows: Sequence[Row]) -> None:
        """Keep what a task found; speeds pass the gate here."""
        named = {name: self.identity.get(name) for name in ("device", "versions", "commit")}
        kept = [{**named, "stage": stage, "task": key, **gate(found)} for found in rows]
        self._append({"end": key, "rows": kept})
        self.done[key] = kept

    def verdict(self, keys: Iterable[str]) -> str:
        """Of checks: "red" if one is, "unchecked" if one is missing, else "green"."""
        verdict = "green"
        for key in keys:
            rows = self.done.get(key)
            if rows is None or not rows:
                verdict = "unchecked"
            elif any(r["check"] == "red" for r in rows):
                return "red"
            elif any(r["check"] != "green" for r in rows):
                verdict = "unchecked"
        return verdict

    def rows(self) -> list[Row]:
        """All rows, in the order of their tasks' ends."""
        return [found for rows in self.done.values() for found in rows]

    def _append(self, entry: Mapping[str, Any]) -> None:
        line = (json.dumps(entry) + "\n").encode()
        # One write to a file opened for appending: lines of several processes do not mix.
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(handle, line)
        finally:
            os.close(handle)
