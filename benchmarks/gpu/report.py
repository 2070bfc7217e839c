"""The results as one JSON file and as a table that a person reads."""

from __future__ import annotations

import json
import math
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .journal import TRUSTED, Row, gate

#: Families whose layers the table shows one by one; of the others it shows means.
SHOWN = ("article_g", "article_d", "dcgan64")
MOST_LINES = 25
MIB = 1 << 20


class Roofs:
    """What the device could do in this very run: matrix products by precision, and copies."""

    def __init__(self, rows: Iterable[Row]) -> None:
        ceilings = [r for r in rows if r["stage"] == "ceiling" and r["check"] in TRUSTED]
        self.flops = {r["dtype"]: 1e12 * r["tflops"] for r in ceilings if "tflops" in r}
        self.bytes = next((1e9 * r["gbytes_per_second"] for r in ceilings if "gbytes_per_second" in r), None)

    def seconds(self, name: str | None, flops: float, moved: float) -> float | None:
        """The least that so much work can take; None where a ceiling was not measured."""
        if name not in self.flops or self.bytes is None:
            return None
        return max(flops / self.flops[name], moved / self.bytes)


def enriched(rows: Sequence[Row]) -> list[Row]:
    """The rows, each with its share of the roofline where its work is known; speeds pass the gate once more."""
    roofs = Roofs(rows)
    per_sample = {r["network"]: r["flops"] for r in rows if r["stage"] == "step/torch" and "flops" in r}
    found = []
    for given in rows:
        r = gate(given)
        if r["seconds"] is not None and "bytes" in r:
            least = roofs.seconds(r["dtype"], r["flops"], r["bytes"])
            r |= {} if least is None else {"share": least / r["seconds"]}
        elif r["seconds"] is not None and r.get("network") in per_sample and r["batch"]:
            # A step's traffic depends on what is fused: held to the arithmetic alone.
            least = roofs.seconds(r["dtype"], per_sample[r["network"]] * r["batch"], 0.0)
            r |= {} if least is None else {"share": least / r["seconds"]}
        found.append(r)
    return found


def write(path: Path, identity: Mapping[str, Any], rows: Sequence[Row], pending: Mapping[str, int]) -> None:
    """The JSON file, replaced whole."""
    content = {"identity": dict(identity), "not_reached": dict(pending), "rows": list(rows)}
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(fresh, path)


def table(identity: Mapping[str, Any], rows: Sequence[Row], pending: Mapping[str, int]) -> str:
    """Everything worth reading, as text."""
    versions = ", ".join(f"{name} {version}" for name, version in identity.get("versions", {}).items())
    parts = [
        [f"{identity.get('device')}; {versions}; commit {identity.get('commit')}, source {identity.get('source')}"],
        _ceilings(rows),
        _checks(rows),
        *_steps(rows),
        *_layers(rows),
        _cuda(rows),
        _notes(rows, pending),
    ]
    return "\n\n".join("\n".join(part) for part in parts if part)


def _timed(rows: Iterable[Row], stages: tuple[str, ...]) -> list[Row]:
    """Rows of these stages that may tell a speed."""
    return [r for r in rows if r["stage"] in stages and r["check"] in TRUSTED and r["seconds"] is not None]


def _ceilings(rows: Sequence[Row]) -> list[str]:
    lines = []
    for r in _timed(rows, ("ceiling",)):
        rate = f"{1e6 * r['seconds']:8.2f} us"
        if "tflops" in r:
            rate = f"{r['tflops']:8.1f} TFLOP/s"
        elif "gbytes_per_second" in r:
            rate = f"{r['gbytes_per_second']:8.0f} GB/s"
        lines.append(f"  {r['what']:20s} {r['dtype'] or '':5s} {rate}")
    return ["Ceilings", *lines] if lines else []


def _checks(rows: Sequence[Row]) -> list[str]:
    groups: dict[str, list[Row]] = defaultdict(list)
    for r in rows:
        if r["stage"] in ("check", "check cuda") and r["task"].startswith("check/"):
            groups[r["task"].split("/")[1]].append(r)
    if not groups:
        return []
    head = f"{'Checks against float64':24s} {'green':>6s} {'RED':>5s} {'other':>6s}"
    lines = [f"{head}  largest error / PyTorch's own or a rounding (2 passes)"]
    for kind, found in groups.items():
        counts = Counter(r["check"] for r in found)
        shares = [r["error"] / max(r["allowed"], 1e-30) for r in found if r["check"] == "green" and r.get("allowed")]
        other = len(found) - counts["green"] - counts["red"]
        worst = f"{max(shares):.2f}" if shares else ""
        lines.append(f"  {kind:22s} {counts['green']:6d} {counts['red']:5d} {other:6d}  {worst}")
    red = [r for found in groups.values() for r in found if r["check"] == "red"]
    lines += [f"  RED {r['dtype'] or '':5s} {r['what']}: {r.get('reason', '')}"[:200] for r in red[:MOST_LINES]]
    if len(red) > MOST_LINES:
        lines.append(f"  and {len(red) - MOST_LINES} more: see the JSON file")
    return lines


def _steps(rows: Sequence[Row]) -> list[list[str]]:
    parts = []
    timed = [r for r in _timed(rows, ("step/torch", "step/ours")) if "network" in r]
    for network in dict.fromkeys(r["network"] for r in timed):
        here = [r for r in timed if r["network"] == network]
        batches = sorted({r["batch"] for r in here})
        best: dict[tuple[int, str], float] = {}
        for r in here:
            if r["stage"] == "step/torch":
                cell = (r["batch"], r["dtype"])
                best[cell] = min(r["seconds"], best.get(cell, math.inf))
        head = f"Step of {network}, ms"
        lines = [f"{head:52s}" + "".join(f"{b:>10d}" for b in batches)]
        by_program: dict[tuple[str, ...], dict[int, Row]] = defaultdict(dict)
        for r in here:
            by_program[(r["program"], r["dtype"], r["layout"], r["stage"])][r["batch"]] = r
        for (program, dtype, layout, stage), found in by_program.items():
            cells = "".join(f"{1e3 * found[b]['seconds']:10.3f}" if b in found else f"{'-':>10s}" for b in batches)
            lines.append(f"  {program:30s} {dtype:5s} {layout:13s}{cells}")
            if stage == "step/ours":
                both = [b in found and (b, dtype) in best for b in batches]
                ratios = [
                    best[b, dtype] / found[b]["seconds"] if there else None
                    for b, there in zip(batches, both, strict=True)
                ]
                cells = "".join(f"{'-':>10s}" if ratio is None else f"{ratio:10.2f}" for ratio in ratios)
                lines.append(f"  {'':35s} {'x best torch':13s}{cells}")
        lines.append("  peak memory in MiB, share of the matrix products' rate:")
        for (program, dtype, layout, _), found in by_program.items():
            cells = "".join(
                f"{(found[b].get('peak_memory') or 0) / MIB:>6.0f}{100 * found[b].get('share', 0):3.0f}%"
                if b in found
                else f"{'-':>10s}"
                for b in batches
            )
            lines.append(f"  {program:30s} {dtype:5s} {layout:13s}{cells}")
        profiled = [r for r in rows if r["stage"] == "trace" and r.get("network") == network and r["check"] in TRUSTED]
        for r in profiled:
            if "kernels" in r:
                device = f"{1e3 * r['device_seconds']:.3f} ms on the device" if "device_seconds" in r else ""
                lines.append(f"  {r['program']} {r['dtype']}, batch {r['batch']}: {r['kernels']} kernels, {device}")
        parts.append(lines)
    return parts


def _layers(rows: Sequence[Row]) -> list[list[str]]:
    torchs: dict[tuple[str, str, str], dict[str, float]] = defaultdict(dict)
    ours: dict[tuple[str, str, str], Row] = {}
    family: dict[str, str] = {}
    for r in _timed(rows, ("layer/torch", "layer/ours")):
        key = (r["layer"], r["pass"], r["dtype"])
        family[r["layer"]] = r["family"]
        if r["stage"] == "layer/torch":
            torchs[key][r["layout"]] = r["seconds"]
        else:
            ours[key] = r
    if not torchs and not ours:
        return []
    head = f"{'Layers, microseconds':60s} {'pass':11s} {'type':5s}"
    lines = [f"{head} {'torch NCHW':>11s} {'NHWC':>9s} {'ours':>9s} {'x best':>7s} {'roof':>5s}"]
    shown = [key for key in {**torchs, **ours} if family[key[0]] in SHOWN]
    for key in sorted(shown, key=lambda k: (SHOWN.index(family[k[0]]), *k)):
        times, mine = torchs.get(key, {}), ours.get(key)
        cells = (times.get("NCHW"), times.get("channels_last"), mine and mine["seconds"])
        words = " ".join(f"{_us(cell):>{width}s}" for cell, width in zip(cells, (11, 9, 9), strict=True))
        ratio = f"{min(times.values()) / mine['seconds']:7.2f}" if times and mine else f"{'-':>7s}"
        roof = f"{100 * mine['share']:4.0f}%" if mine and "share" in mine else ""
        lines.append(f"  {key[0]:58s} {key[1]:11s} {key[2]:5s} {words} {ratio} {roof}")
    groups: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for key, r in ours.items():
        if key in torchs:
            groups[(family[key[0]], key[2])][key[1]].append(min(torchs[key].values()) / r["seconds"])
    head = f"{'Layers: best of PyTorch / ours, geometric means':48s} {'type':5s}"
    means = [f"{head} {'forward':>9s} {'input':>9s} {'weight':>9s} {'cells':>6s} {'below 0.97':>10s}"]
    for (name, dtype), passes in groups.items():
        by_pass = [passes.get(which) for which in ("forward", "input_grad", "weight_grad")]
        cells_of = " ".join(f"{_mean(ratios):9.2f}" if ratios else f"{'-':>9s}" for ratios in by_pass)
        every = [ratio for ratios in passes.values() for ratio in ratios]
        slower = sum(ratio < 0.97 for ratio in every)
        means.append(f"  {name:46s} {dtype:5s} {cells_of} {len(every):6d} {slower:10d}")
    return [part for part in (lines, means) if len(part) > 1]


def _cuda(rows: Sequence[Row]) -> list[str]:
    lines = []
    for r in _timed(rows, ("cuda",)):
        roof = f"{100 * r['share']:4.0f}%" if "share" in r else ""
        lines.append(f"  {r['layer']:58s} {r['pass']:11s} {r['dtype']:5s} {_us(r['seconds']):>9s} {roof}")
    return ["CUDA module's layers, microseconds, share of the roof", *lines] if lines else []


def _us(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1e6 * seconds:.1f}"


def _mean(values: Sequence[float]) -> float:
    return math.exp(sum(math.log(value) for value in values) / len(values))


def _notes(rows: Sequence[Row], pending: Mapping[str, int]) -> list[str]:
    lines = []
    for state in ("not built", "failed", "refused", "skipped"):
        found = [r for r in rows if r["state"] == state and not (state == "failed" and r["stage"] == "check")]
        # One line for each reason: a missing compiler or Triton stops many tasks at once.
        reasons = Counter((r["stage"], r.get("reason", "")) for r in found)
        first = {(r["stage"], r.get("reason", "")): r for r in reversed(found)}
        for (stage, reason), count in list(reasons.items())[:MOST_LINES]:
            r = first[(stage, reason)]
            more = f" and {count - 1} more" if count > 1 else ""
            lines.append(f"  {state}: {r['what']} {r['dtype'] or ''}{more}: {reason}"[:240])
        if len(reasons) > MOST_LINES:
            lines.append(f"  {state}: {len(reasons) - MOST_LINES} more reasons, see the JSON file")
    if pending:
        left = ", ".join(f"{stage} {count}" for stage, count in pending.items())
        lines.append(f"  not reached in this time (run the same command again to go on): {left}")
    return ["Without a figure", *lines] if lines else []
