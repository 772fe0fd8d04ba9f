"""A page of HTML in one file: no network, no script, readable on a wide and on a narrow window."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--line); padding: .35rem .8rem; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
tbody tr:hover { background: var(--soft); }
.pictures { display: flex; flex-wrap: wrap; gap: 1rem; }
figure { margin: 0; flex: 1 1 22rem; max-width: 44rem; } img { width: 100%; } figcaption { font-size: .9rem; }
""".strip()


def page(title: str, *parts: str) -> str:
    """The whole page; the parts are made by the functions below."""
    content = "\n".join(parts)
    name = escape(title)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{name}</title>\n<style>\n{STYLE}\n</style>\n</head>\n"
        f"<body>\n<h1>{name}</h1>\n{content}\n</body>\n</html>\n"
    )


def heading(text: str) -> str:
    return f"<h2>{escape(text)}</h2>"


def paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Rows of cells, each written by str(); where the window is too narrow, the table scrolls and the page does not."""
    head = "".join(f"<th>{escape(name)}</th>" for name in headers)
    lines = ["".join(f"<td>{escape(str(cell))}</td>" for cell in row) for row in rows]
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'


def pictures(images: Iterable[tuple[bytes, str]]) -> str:
    """PNG images with their captions, side by side where there is room."""
    figures = [
        f'<figure><img src="data:image/png;base64,{base64.b64encode(image).decode()}" alt="{escape(caption)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
        for image, caption in images
    ]
    return '<div class="pictures">\n' + "\n".join(figures) + "\n</div>"
