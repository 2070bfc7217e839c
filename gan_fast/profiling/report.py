"""The result of a profile: tables as text, and the same as plain values for JSON."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["LayerRow", "OperatorRow", "PhaseRow", "Report", "Stretch"]

_MOST_ROWS = 16


@dataclass(frozen=True)
class PhaseRow:
    """One phase of a step. ``update``: the network whose optimiser step it led to, or ""; seconds of a step."""

    update: str
    phase: str
    seconds: float
    share: float


@dataclass(frozen=True)
class Stretch:
    """A part of one step that belonged to one phase; seconds, from the step's beginning."""

    phase: str
    update: str
    begin: float
    seconds: float


@dataclass(frozen=True)
class LayerRow:
    """One layer (or a container's own work, or "" for all outside of layers): seconds, FLOPs and bytes of a step.

    ``roof``: the least time that the machine could take for that, divided by the time taken; None where there is no
    work to count. ``forward_backend`` and ``backward_backend``: who served the passes, in the steps that were watched.
    """

    layer: str
    kind: str
    forward: float
    backward: float
    flops: int
    bytes: int
    roof: float | None
    forward_backend: str
    backward_backend: str
    why: str


@dataclass(frozen=True)
class OperatorRow:
    """One operator in all layers; as `LayerRow`. ``served``: backend -> why it was chosen; empty for PyTorch's own."""

    operator: str
    calls: float
    seconds: float
    flops: int
    bytes: int
    roof: float | None
    served: dict[str, str]


@dataclass
class Report:
    """What a profile found; ``str()`` is the text, `as_dict` the values.

    Attributes:
        machine: processor, threads, instruction level, versions, device.
        counts: how many steps there were of each kind.
        step: seconds of an unprofiled step (median), or of a profiled one if there was no other.
        wall: seconds of a step whose phases were timed (mean); the phases add up to it.
        phases, layers, operators: rows, the longest first.
        timeline: the stretches of the timed step of median length, one after the other.
        outside: share of the steps under torch.profiler in which no operator ran, nor was data waited for.
        flops, bytes: of a step.
        roof: best FLOP/s and bytes/s of this machine, and the step's share.
        memory: peak memory in bytes, and of what.
        overhead: kind of measuring -> by how much it lengthens a step (0.02: 2 %).
        spread: how far the unprofiled steps differ: distance of their quartiles, divided by the median.
        kernels: on CUDA, seconds of a step by kernel; gaps: share of the time between them.
        verdict: sentences, the most important first.
        notes: what could not be measured, and why.
    """

    machine: dict[str, Any]
    counts: dict[str, int]
    step: float
    wall: float
    phases: list[PhaseRow] = field(default_factory=list)
    layers: list[LayerRow] = field(default_factory=list)
    operators: list[OperatorRow] = field(default_factory=list)
    timeline: list[Stretch] = field(default_factory=list)
    outside: float | None = None
    flops: int = 0
    bytes: int = 0
    roof: dict[str, float] = field(default_factory=dict)
    memory: dict[str, Any] = field(default_factory=dict)
    overhead: dict[str, float] = field(default_factory=dict)
    spread: float | None = None
    kernels: dict[str, float] = field(default_factory=dict)
    gaps: float | None = None
    verdict: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Plain values that fit into JSON."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        lines = [f"{ms(self.step)} a step; {', '.join(f'{key} {value}' for key, value in self.machine.items())}"]
        lines += ["", *self._phase_lines()]
        if self.layers:
            lines += ["", *self._layer_lines()]
        if self.operators:
            lines += ["", *self._operator_lines()]
        if self.kernels:
            lines += ["", *self._kernel_lines()]
        lines += ["", *self._totals(), "", "verdict", *(f"  {sentence}" for sentence in self.verdict)]
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)

    def _phase_lines(self) -> list[str]:
        total = sum(row.seconds for row in self.phases)
        known = f"they add up to {total / self.wall:.1%} of the wall time" if self.wall else "none was timed"
        head = f"phases: {ms(self.wall)} a step, mean of {self.counts.get('timed', 0)} steps; {known}"
        rows = [(row.phase, row.update, ms(row.seconds), f"{row.share:.1%}") for row in self.phases]
        return [head, *table(("phase", "for the update of", "time", "share"), rows, "llrr")]

    def _layer_lines(self) -> list[str]:
        head = "layers, with the activations that they compute (backward: all passes of gradients)"
        rows = []
        for row in self.layers[:_MOST_ROWS]:
            served = row.forward_backend
            if row.backward_backend and row.backward_backend != served:
                served = f"{served} / {row.backward_backend}"
            cells = (ms(row.forward), ms(row.backward), *amounts(row.flops, row.bytes), percent(row.roof))
            rows.append((row.layer or "(outside)", row.kind, *cells, served, textwrap.shorten(row.why, 80)))
        names = ("layer", "kind", "forward", "backward", "GFLOP", "MB", "of roof", "served by", "why")
        return [head, *table(names, rows, "llrrrrrll"), *_rest(self.layers)]

    def _operator_lines(self) -> list[str]:
        rows = []
        for row in self.operators[:_MOST_ROWS]:
            served = ", ".join(row.served) if row.served else "torch" if "::" in row.operator else ""
            cells = (f"{row.calls:.0f}", ms(row.seconds), *amounts(row.flops, row.bytes), percent(row.roof))
            rows.append((row.operator, *cells, served))
        names = ("operator", "calls", "time", "GFLOP", "MB", "of roof", "served by")
        return ["operators", *table(names, rows, "lrrrrrl"), *_rest(self.operators)]

    def _kernel_lines(self) -> list[str]:
        longest = sorted(self.kernels.items(), key=lambda item: -item[1])[:_MOST_ROWS]
        gaps = "" if self.gaps is None else f"; between kernels the device waits {self.gaps:.1%} of the time"
        return [f"kernels{gaps}", *table(("kernel", "time"), [(name[:90], ms(s)) for name, s in longest], "lr")]

    def _totals(self) -> list[str]:
        lines = []
        if self.flops:
            lines.append(
                f"work: {self.flops / 1e9:.3g} GFLOP and {self.bytes / 1e6:.3g} MB a step, "
                f"{self.flops / self.step / 1e9:.3g} GFLOP/s"
            )
        if self.roof:
            lines.append(
                f"roof: {self.roof['flops'] / 1e9:.3g} GFLOP/s (fp32) and {self.roof['bandwidth'] / 1e9:.3g} GB/s, "
                f"measured here; the step is at {self.roof['share']:.1%} of it "
                "(a row above 100%: served by the caches)"
            )
        if self.memory:
            lines.append(f"memory: {self.memory['peak'] / 2**20:.0f} MiB at the peak ({self.memory['of']})")
        if self.overhead:
            costs = ", ".join(f"{what} {share:+.1%}" for what, share in self.overhead.items())
            spread = "" if self.spread is None else f" (unprofiled ones differ by {self.spread:.1%} among themselves)"
            lines.append(
                f"overhead of profiling, against {self.counts.get('bare', 0)} unprofiled steps: {costs}{spread}"
            )
        return lines


def table(head: Sequence[str], rows: Sequence[Sequence[str]], align: str) -> list[str]:
    """Lines of a table; ``align`` has l or r for each column."""
    cells = [tuple(head), *(tuple(row) for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(head))]
    return [
        "  "
        + "  ".join(
            cell.ljust(width) if side == "l" else cell.rjust(width)
            for cell, width, side in zip(line, widths, align, strict=True)
        ).rstrip()
        for line in cells
    ]


def ms(seconds: float) -> str:
    """Milliseconds."""
    return f"{1e3 * seconds:.2f} ms"


def amounts(flops: int, traffic: int) -> tuple[str, str]:
    """GFLOP and MB."""
    return f"{flops / 1e9:.3f}" if flops else "-", f"{traffic / 1e6:.2f}" if traffic else "-"


def percent(share: float | None) -> str:
    """A share, or a dash."""
    return "-" if share is None else f"{share:.0%}"


def _rest(rows: Sequence[Any]) -> list[str]:
    left = rows[_MOST_ROWS:]
    if not left:
        return []
    seconds = sum(row.seconds if isinstance(row, OperatorRow) else row.forward + row.backward for row in left)
    return [f"  ... and {len(left)} more, {ms(seconds)} together"]
