"""The frame of a page: title, sections, tables that sort by a click on their heads; light and dark, down to a phone's
width."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gan_fast.cache import atomic_write

__all__ = ["Line", "Number", "facts", "page", "picture", "section", "table", "verdict", "write"]


#: Cells with more letters break into lines.
LONG = 60


class Number(NamedTuple):
    """A cell that sorts by its value; empty, and before all others, without one."""

    value: float | None
    form: str = "{:.3g}"

    @property
    def text(self) -> str:
        """As it is shown."""
        return "" if self.value is None else self.form.format(self.value)


class Line(NamedTuple):
    """A row of a table. `kind`: "ours", "bad" or "" (how it is coloured)."""

    cells: Sequence[str | Number]
    kind: str = ""


def page(title: str, parts: Iterable[str]) -> str:
    """The HTML of a page with these sections."""
    frame = _FRAME.replace("@STYLE@", _STYLE).replace("@SCRIPT@", _SCRIPT).replace("@TITLE@", html.escape(title))
    return frame.replace("@BODY@", "\n".join(part for part in parts if part))


def write(path: Path, text: str) -> None:
    """Write a page to a file, as a whole."""

    def save(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8")

    atomic_write(path, save)


def verdict(sentences: Iterable[str]) -> str:
    """What the page comes to: sentences in HTML."""
    return "<section class=verdict>" + "".join(f"<p>{text}</p>" for text in sentences) + "</section>"


def section(title: str, content: str, note: str = "") -> str:
    """A headed part of the page; "" without content."""
    note = f"<p>{html.escape(note)}</p>" if note else ""
    return f"<section><h2>{html.escape(title)}</h2>{note}{content}</section>" if content else ""


def picture(title: str, note: str, *plots: str) -> str:
    """A section of plots, side by side where there is room; "" without any."""
    found = [plot for plot in plots if plot]
    figures = "".join(f"<figure>{plot}</figure>" for plot in found)
    return section(title, f"<div class=plots>{figures}</div>" if len(found) > 1 else figures, note)


def table(head: Sequence[str], lines: Iterable[Line]) -> str:
    """A table that sorts."""
    rows = []
    for line in lines:
        cells = []
        for cell in line.cells:
            if isinstance(cell, Number):
                cells.append(f'<td class=n data-v="{-1.0 if cell.value is None else cell.value}">{cell.text}</td>')
            else:
                cells.append(f"<td{' class=long' if len(cell) > LONG else ''}>{html.escape(cell)}</td>")
        rows.append(f"<tr{f' class={line.kind}' if line.kind else ''}>{''.join(cells)}</tr>")
    heads = "".join(f'<th scope=col tabindex=0 aria-sort="none">{html.escape(word)}</th>' for word in head)
    body = "\n".join(rows)
    return f"<div class=wide><table class=sorts><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>"


def facts(values: Mapping[str, Any]) -> str:
    """Names and values, one to a line; mappings within are spread out."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat.update({f"{key}: {k}": v for k, v in value.items()} if isinstance(value, Mapping) else {key: value})
    lines = (f"<tr><td>{html.escape(k)}</td><td>{html.escape(str(v))}</td></tr>" for k, v in flat.items())
    return f"<div class=wide><table>{''.join(lines)}</table></div>"


_FRAME = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,"><title>@TITLE@</title><style>@STYLE@</style></head>
<body><main><h1>@TITLE@</h1>
@BODY@
</main><script>@SCRIPT@</script></body></html>
"""

_STYLE = """
:root { color-scheme: light dark; --back: #fff; --text: #1c1c1e; --line: #d8d8dc; --ours: #d55e0018; --bad: #b00020; }
@media (prefers-color-scheme: dark) {
  :root { --back: #16181c; --text: #e6e6e6; --line: #3a3d44; --ours: #d55e0030; --bad: #ff8a80; }
}
body { margin: 0; background: var(--back); color: var(--text); font: 15px/1.45 system-ui, sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
.verdict { border-left: 4px solid #009e73; padding-left: 1rem; }
figure { margin: 0; } figure svg { width: 100%; max-width: 44rem; height: auto; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(22rem, 100%), 1fr)); gap: 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.85rem; white-space: nowrap; }
.long { white-space: normal; min-width: 22rem; }
th, td { border-bottom: 1px solid var(--line); padding: 0.25rem 0.6rem; text-align: left; }
.sorts th { cursor: pointer; } .n { text-align: right; font-variant-numeric: tabular-nums; }
th[aria-sort=ascending]::after { content: " \\2191"; } th[aria-sort=descending]::after { content: " \\2193"; }
.ours { background: var(--ours); } .bad { color: var(--bad); }
"""

_SCRIPT = """
for (const table of document.querySelectorAll("table.sorts")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const sort = () => {
      const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      const value = row => row.cells[column].dataset.v ?? row.cells[column].textContent;
      const rows = [...table.tBodies[0].rows].sort((a, b) => {
        const [x, y] = [value(a), value(b)];
        return sign * (isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y);
      });
      table.tBodies[0].append(...rows);
      heads.forEach(other => other.setAttribute("aria-sort", "none"));
      head.setAttribute("aria-sort", sign === 1 ? "ascending" : "descending");
    };
    head.addEventListener("click", sort);
    head.addEventListener("keydown", event => { if (event.key === "Enter") sort(); });
  });
}
"""
