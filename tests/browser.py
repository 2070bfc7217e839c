"""A page looked at: by a parser, and by a real browser without a window where there is one."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_VOID = {"meta", "link", "br"}

#: Clicks every head of every table twice, and writes into the outer page's title what it saw.
_DRIVER = """
const shown = [...document.querySelectorAll("svg")];
const seen = {plots: shown.length, tables: 0, wrong: []};
const value = cell => cell.dataset.v === undefined ? cell.textContent : Number(cell.dataset.v);
const ordered = (a, b) => typeof a === "number" || (!isNaN(a) && !isNaN(b)) ? a - b <= 0 : a.localeCompare(b) <= 0;
for (const table of document.querySelectorAll("table.sorts")) {
  seen.tables += 1;
  for (const head of table.tHead.rows[0].cells) {
    for (const sign of [1, -1]) {
      head.click();
      const values = [...table.tBodies[0].rows].map(row => value(row.cells[head.cellIndex]));
      const right = values.slice(1).every((v, i) => sign > 0 ? ordered(values[i], v) : ordered(v, values[i]));
      const says = head.getAttribute("aria-sort") === (sign > 0 ? "ascending" : "descending");
      if (!right || !says || !values.length) seen.wrong.push("unsorted: " + head.textContent);
    }
  }
}
if (!shown.every(svg => svg.getBoundingClientRect().height > 50)) seen.wrong.push("a plot is flat");
if (document.documentElement.scrollWidth > innerWidth) seen.wrong.push("wider than the window");
seen.dark = matchMedia("(prefers-color-scheme: dark)").matches;
const light = colour => colour.match(/\\d+/g).slice(0, 3).reduce((sum, part) => sum + Number(part), 0);
const style = getComputedStyle(document.body);
seen.letters = light(style.color) - light(style.backgroundColor);
seen.width = innerWidth;
parent.document.title = JSON.stringify(seen);
"""


class _Balanced(HTMLParser):
    """Every element is closed, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids += [value for key, value in attrs if key == "id" and value]
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids += [value for key, value in attrs if key == "id" and value]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, tag


def require_whole(text: str) -> None:
    """Every element is closed, every name is unique, nothing points outside of the page."""
    parser = _Balanced()
    parser.feed(text)
    assert parser.open == [] and len(parser.ids) == len(set(parser.ids))
    assert set(re.findall(r'(?:href|src)="([^"]*)"', text)) <= {"data:,", *(f"#{name}" for name in parser.ids)}
    assert not re.search(r"https?://(?!www\.w3\.org)", text), "an address"


def look(text: str, folder: Path, width: int, dark: bool) -> dict[str, Any]:
    """Open a page in the browser: plots are visible, tables sort, it fits, and nothing is complained of.

    It is shown inside of another page, since Chromium's windows are never as narrow as a telephone.

    Args:
        text: the page.
        folder: for its file and the browser's own.
        width: in pixels, at most 1200.
        dark: as the reader's system says it.

    Returns:
        Numbers of plots and of tables that sort.
    """
    path = folder / "page.html"
    watched = text.replace("</script></body>", f"</script><script>{_DRIVER}</script></body>")
    inner = f'<iframe srcdoc="{html.escape(watched)}" style="border: 0; width: {width}px; height: 900px"></iframe>'
    path.write_text(
        f'<!DOCTYPE html><html><head><link rel="icon" href="data:,"></head><body>{inner}</body></html>',
        encoding="utf-8",
    )
    command = [
        str(PROGRAM), "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0",
        f"--blink-settings=preferredColorScheme={0 if dark else 1}", f"--user-data-dir={folder / 'browser'}",
        "--window-size=1400,1000", "--dump-dom", path.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "CONSOLE" not in done.stderr, done.stderr
    title = re.search(r"<title>(.*?)</title>", done.stdout)
    assert title and title[1].startswith("{"), done.stdout[:300]
    seen: dict[str, Any] = json.loads(html.unescape(title[1]))
    assert seen.pop("wrong") == [] and seen.pop("width") == width
    assert seen.pop("dark") is dark
    # Light letters on a dark ground, or dark ones on a light ground: sums of three colours.
    assert seen.pop("letters") * (1 if dark else -1) > 450
    return seen
