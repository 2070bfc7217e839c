"""What changed for gan_fast from one result file to another."""

from __future__ import annotations

import math
from pathlib import Path

from gan_fast.suite.results import fastest_peers, ratio, read

__all__ = ["BAND", "compare"]

#: Ratios of the same programs in two runs differ by this much on a shared machine.
BAND = 0.10
#: What must agree for two files' times to be comparable.
SAME_MACHINE = ("cpu", "cores", "threads", "level", "device")


def compare(before: Path, after: Path, *, any_machine: bool = False, band: float = BAND) -> tuple[str, int]:
    """What changed for gan_fast from one result file to another.

    A shared machine is faster at one time than at another, and so are all programs on it. So what is compared is each
    row's ratio to PyTorch's fastest program on the same work in the same file. It has changed if the two ratios differ
    by more than `band`, and by more than their uncertainties together. Rows of older files, which have medians alone,
    are shown and not judged if they come from a disturbed machine; where there are pairs of turns, disturbances met
    both programs, and are in the uncertainty.

    Args:
        before, after: the files.
        any_machine: compare files of different machines too.
        band: relative change that counts as none, for what differs between two runs of the same programs.

    Returns:
        The table, and the number of gan_fast's rows that became slower or wrong.

    Raises:
        ValueError: no result files, of different machines, or without a row of gan_fast in common.
    """
    (old_machine, old_rows), (new_machine, new_rows) = read(before), read(after)
    lines = [
        f"{name}: gan_fast at {machine.get('commit')}, torch {machine.get('torch')}, {len(rows)} rows"
        for name, machine, rows in ((before, old_machine, old_rows), (after, new_machine, new_rows))
    ]
    different = [key for key in SAME_MACHINE if old_machine.get(key) != new_machine.get(key)]
    if different and not any_machine:
        said = "; ".join(f"{key} {old_machine.get(key)!r} and {new_machine.get(key)!r}" for key in different)
        raise ValueError(f"{before} and {after} are of different machines: {said}; expected files of one")
    old = {row.key: row for row in old_rows}
    both = [(old[row.key], row) for row in new_rows if row.key in old and row.program.startswith("gan_fast")]
    if not both:
        raise ValueError(
            f"{before} and {after} have no row of gan_fast in common: expected the same layers, steps and programs"
        )
    was_best, now_best = fastest_peers(old_rows), fastest_peers(new_rows)
    worse, better = 0, 0
    width = max(len(row.name) for _, row in both)
    for was, now in both:
        what = f"{now.name:{width}s} {now.pass_:11s} {now.format:13s} {now.program:30s}"
        if now.wrong and not was.wrong:
            worse += 1
            lines.append(f"{what} became wrong: {now.wrong}")
        was_peer, now_peer = was_best.get(was.piece), now_best.get(now.piece)
        if was.seconds is None or now.seconds is None or was_peer is None or now_peer is None:
            continue
        first, second = ratio(was_peer, was), ratio(now_peer, now)
        allowed = max(band, math.hypot(first.uncertainty, second.uncertainty))
        change = second.value / first.value - 1
        verdict = "no change"
        disturbed = not all(row.trusted for row in (was, now, was_peer, now_peer))
        if disturbed and not (first.pairs and second.pairs):
            verdict = "disturbed, not judged"
        elif abs(change) > allowed:
            verdict = "SLOWER" if change < 0 else "faster"
            worse, better = worse + (change < 0), better + (change > 0)
        said = f"{first.value:6.2f} -> {second.value:6.2f} x best {100 * change:+6.1f}% (band {100 * allowed:.0f}%)"
        lines.append(f"{what} {said}  {verdict}")
    lost, new = len(old) - len(set(old) & {row.key for row in new_rows}), len({row.key for row in new_rows} - set(old))
    lines.append(f"{len(both)} rows of gan_fast in common; of all rows, {lost} only in {before}, {new} only in {after}")
    lines.append(f"{worse} slower or wrong, {better} faster")
    return "\n".join(lines), worse
