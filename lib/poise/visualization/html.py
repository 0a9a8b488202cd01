"""Self-contained HTML pages: no scripts, no requests, light and dark mode."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Sequence

import numpy as np

from poise.errors import escape_html
from poise.visualization import charts
from poise.visualization import draw as visualize

_STYLE = """
:root { color-scheme: light dark; --ground: #fff; --text: #1b1b1b; --soft: #666; --line: #d5d5d5;
  --better: #137333; --worse: #b3261e;
  LIGHT }
@media (prefers-color-scheme: dark) { :root { --ground: #16181b; --text: #e6e6e6; --soft: #a0a0a0;
  --line: #3c4045; --better: #74c68a; --worse: #f08a80;
  --series-0: #5aa2e0; --series-1: #f0994d; --series-2: #6f9c74; --series-3: #d9ad3f; --series-4:
  #c584d4; --series-5: #e56a6a; --series-6: #86a5e4; --series-7: #999; } }
body { background: var(--ground); color: var(--text); font: 15px/1.5 system-ui, sans-serif;
  max-width: 1060px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.5em; } h2 { font-size: 1.2em; margin-top: 2em; border-bottom: 1px solid
  var(--line); } h3 { font-size: 1em; margin-bottom: .2em; }
h1, h2, h3, p, li { overflow-wrap: anywhere; } p, li { max-width: 52em; } .soft { color:
  var(--soft); } .scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9em; margin:
  .6em 0; }
th, td { padding: .15em .7em; border-bottom: 1px solid var(--line); text-align: right;
  white-space: nowrap; } th:first-child, td:first-child, .text { text-align: left; }
th { vertical-align: bottom; white-space: normal; } td.text { white-space: normal; overflow-wrap:
  anywhere; min-width: 7em; } .better { color: var(--better); } .worse { color: var(--worse); }
figure { margin: .8em 0; } svg { max-width: 100%; height: auto; } .panels { display: flex;
  flex-wrap: wrap; gap: 8px; } .panels > * { max-width: 100%; } .panels figure { margin: 0; }
.panels img { max-width: 100%; border: 1px solid var(--line); } figcaption { font-size: .85em;
  color: var(--soft); overflow-wrap: anywhere; }
.picture { margin: 1.2em 0; } .picture p { margin: .1em 0; overflow-wrap: anywhere; }
""".replace(
    "LIGHT",
    " ".join(f"--series-{index}: {color};" for index, color in enumerate(charts.PAPER.series)),
)


# blocks all requests, even if escaping of a file's text failed
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


class Markup(str):
    """Trusted HTML. Never text from a file."""


def render_document(title: str, parts: Iterable[str]) -> str:
    """Return an HTML page of parts."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n<meta name="viewport"'
        ' content="width=device-width, initial-scale=1">\n'
        f'<link rel="icon" href="data:,">\n<title>{escape_html(title)}</title>\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n" + "\n".join(parts) + "\n</body>\n</html>\n"
    )


def format_number(value: float | None, digits: int = 3) -> str:
    """Format a number; a dash for None, NaN, infinity and -1."""
    if value is None or not math.isfinite(value) or value == -1:
        return "–"
    return f"{value:.{digits}f}"


def render_table(
    head: Sequence[str], rows: Iterable[Sequence[str]], text_columns: Sequence[int] = ()
) -> str:
    """Return an HTML table. Cells are escaped except Markup. text_columns: left-aligned."""

    def cell(content: str, column: int) -> str:
        text = content if isinstance(content, Markup) else escape_html(content)
        if column in text_columns:
            return f'<td class="text">{text}</td>'
        return f"<td>{text}</td>"

    lines = ["".join(cell(content, column) for column, content in enumerate(row)) for row in rows]
    titles = ""
    for column, name in enumerate(head):
        tag = "<th class=text>" if column in text_columns else "<th>"
        titles += f"{tag}{escape_html(name)}</th>"
    return (
        f'<div class="scroll"><table><tr>{titles}</tr>'
        + "".join(f"<tr>{line}</tr>" for line in lines)
        + "</table></div>"
    )


def encode_data_uri(image: np.ndarray) -> str:
    """Return a BGR image (H, W, 3) uint8 as a data URI."""
    data = visualize.encode_image(image, ".jpg", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(data).decode()
