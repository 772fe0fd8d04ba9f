"""A page of HTML in one file: no network, no script, readable on a wide and on a narrow window, by day and by night."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple

# The series colours are Okabe and Ito's, which people who see fewer colours can tell apart, darkened for text on white
# and lightened for text on black.
STYLE = """
:root {
  color-scheme: light dark;
  --paper: #fff; --ink: #1d2126; --muted: #606a76; --line: #d9dde3; --soft: #f4f6f8; --bad: #b3261e; --good: #00734f;
  --s0: #0068a8; --s1: #a66300; --s2: #007d5a; --s3: #a64d85; --s4: #cc4a00; --s5: #3f7fa6; --s6: #75700a; --s7: #5a626c;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #15181c; --ink: #e6e9ed; --muted: #9ba5b1; --line: #343a42; --soft: #1e2228; --bad: #ff8a80; --good: #42c99b;
    --s0: #5cb6f2; --s1: #e8a33a; --s2: #2fc492; --s3: #dd93bd; --s4: #ff8547; --s5: #9acdec; --s6: #d8d04e; --s7: #b0b8c2;
  }
}
* { box-sizing: border-box; }
html { scroll-padding-top: 1rem; -webkit-text-size-adjust: 100%; }
body {
  background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif;
  margin: 0 auto; max-width: 74rem; padding: 1.5rem 1rem 4rem; overflow-wrap: break-word;
}
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .25rem; }
h2 { border-top: 1px solid var(--line); font-size: 1.25rem; margin: 2.75rem 0 .75rem; padding-top: 1rem; }
h3 { font-size: 1rem; margin: 1.75rem 0 .5rem; }
p { margin: .5rem 0; max-width: 48rem; }
a { color: var(--s0); }
.lead { font-size: 1.3rem; font-weight: 600; line-height: 1.35; margin: .75rem 0; max-width: 52rem; }
.note { color: var(--muted); font-size: .9rem; }
.bad { color: var(--bad); } .good { color: var(--good); }
.name { font-weight: 600; }
.wide { margin: .75rem 0; overflow-x: auto; }
table { border-collapse: collapse; font-size: .95rem; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--line); padding: .35rem .7rem; text-align: right; white-space: nowrap; }
th { color: var(--muted); font-weight: 500; vertical-align: bottom; }
th:first-child, td:first-child { padding-left: 0; position: sticky; left: 0; background: var(--paper); text-align: left; }
td.text { text-align: left; white-space: normal; min-width: 14rem; }
tbody tr:hover td { background: var(--soft); }
.swatch { border-radius: 2px; display: inline-block; height: .75em; margin-right: .45em; width: .75em; }
.pictures { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(22rem, 100%), 1fr)); }
.pictures.small { gap: .75rem; grid-template-columns: repeat(auto-fill, minmax(8.5rem, 1fr)); }
figure { margin: 0; min-width: 0; } figcaption { color: var(--muted); font-size: .85rem; line-height: 1.35; }
img { border-radius: 3px; display: block; height: auto; margin-bottom: .25rem; width: 100%; }
svg { display: block; height: auto; width: 100%; } svg text { font-family: system-ui, sans-serif; }
pre {
  background: var(--soft); border-radius: 4px; font: .85rem/1.5 ui-monospace, monospace; margin: .5rem 0; max-height: 40rem;
  overflow: auto; padding: .6rem .8rem;
}
pre.all { user-select: all; }
summary { cursor: pointer; }
nav { font-size: .95rem; margin: 1rem 0; } nav a { margin-right: 1rem; text-decoration: none; white-space: nowrap; }
nav a:hover { text-decoration: underline; }
@media (min-width: 75rem) {
  body.listed { display: grid; column-gap: 2.5rem; grid-template-columns: 10rem minmax(0, 1fr); max-width: 88rem; }
  body.listed nav { align-self: start; margin: .3rem 0; position: sticky; top: 1.5rem; }
  body.listed nav a { display: block; margin: 0; padding: .2rem 0; }
}
@media print { nav { display: none; } pre { max-height: none; } }
""".strip()


class Html(str):
    """Text that is HTML already; everything else is escaped where it is written."""


class Section(NamedTuple):
    """A part of a page that its table of contents names."""

    anchor: str  # of the link, unique in the page
    title: str
    content: str


def page(title: str, *parts: str, sections: Sequence[Section] = ()) -> str:
    """The whole page: the parts, then the sections, which a table of contents lists; made by the functions below."""
    name = escape(title)
    contents = "".join(f'<a href="#{item.anchor}">{escape(item.title)}</a>\n' for item in sections)
    rest = (f'<h2 id="{item.anchor}">{escape(item.title)}</h2>\n{item.content}' for item in sections)
    content = "\n".join((f"<h1>{name}</h1>", *parts, *rest))
    body = (
        f'<body class="listed">\n<nav aria-label="contents">\n{contents}</nav>\n<main>\n{content}\n</main>\n</body>'
        if sections
        else f"<body>\n{content}\n</body>"
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # A browser would ask the server for an icon.
        '<link rel="icon" href="data:,">\n'
        f"<title>{name}</title>\n<style>\n{STYLE}\n</style>\n</head>\n{body}\n</html>\n"
    )


def heading(text: str, *, level: int = 2) -> str:
    return f"<h{level}>{escape(text)}</h{level}>"


def paragraph(text: str, *, style: str = "") -> str:
    """A paragraph; `style` names classes of the page: lead, note, bad."""
    return f"<p{_class(style)}>{_text(text)}</p>"


def table(headers: Sequence[str], rows: Iterable[Sequence[object]], *, text: Sequence[int] = ()) -> str:
    """Rows of cells, each written by str(); where the window is too narrow, the table scrolls and the page does not.

    Args:
        text: the numbers of the columns that are sentences: they are broken into lines.
    """
    head = "".join(f"<th>{_text(name)}</th>" for name in headers)
    lines = [
        "".join(
            f"<td{_class('text' if at in text else '')}>{_text(cell)}</td>" for at, cell in enumerate(row)
        )
        for row in rows
    ]
    body = "\n".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'


def pictures(images: Iterable[tuple[bytes, str]], *, small: bool = False) -> str:
    """PNG or JPEG images with their captions, side by side where there is room."""
    return grid((picture(image, caption) for image, caption in images), small=small)


def picture(image: bytes, caption: str, *, alt: str | None = None) -> Html:
    """A PNG or JPEG image with its caption; `alt` tells what it shows to who cannot see it, the caption if None."""
    kind = "jpeg" if image.startswith(b"\xff\xd8") else "png"
    code = base64.b64encode(image).decode()
    return _figure(
        f'<img src="data:image/{kind};base64,{code}" alt="{escape(caption if alt is None else alt)}">',
        caption,
    )


def grid(figures: Iterable[str], *, small: bool) -> str:
    """Figures side by side where there is room; `small`: more of them in a row."""
    return f'<div{_class("pictures small" if small else "pictures")}>\n' + "\n".join(figures) + "\n</div>"


def drawings(images: Iterable[tuple[str, str]]) -> str:
    """Charts as <svg> with their captions ("" for none), side by side where there is room."""
    return grid((_figure(image, caption) for image, caption in images), small=False)


def code(lines: Iterable[str], *, whole: bool = True) -> str:
    """Text as it is to be typed; `whole`: a click selects all of it."""
    return f'<pre{_class("all" if whole else "")}>{escape(chr(10).join(lines))}</pre>'


def folded(title: str, *parts: str, is_open: bool = False) -> str:
    """Parts that show when their title is clicked."""
    content = "\n".join(parts)
    return f'<details{" open" if is_open else ""}><summary>{_text(title)}</summary>\n{content}\n</details>'


def swatch(color: str) -> Html:
    """A small square of a colour of the page, such as "s0", or "#ff0000"."""
    value = color if re.fullmatch("#[0-9a-f]{6}", color) else f"var(--{color})"
    return Html(f'<span class="swatch" style="background:{value}"></span>')


def joined(*parts: str) -> Html:
    """Parts in a line, those escaped that are no HTML."""
    return Html("".join(_text(part) for part in parts))


def lines(*parts: str) -> Html:
    """Parts one below the other."""
    return Html("<br>".join(_text(part) for part in parts))


def marked(text: str, style: str) -> Html:
    """Text of a class of the page: bad, good, name, note."""
    return Html(f"<span{_class(style)}>{_text(text)}</span>")


def _figure(content: str, caption: str) -> Html:
    below = f"<figcaption>{_text(caption)}</figcaption>" if caption else ""
    return Html(f"<figure>{content}{below}</figure>")


def _class(style: str) -> str:
    return f' class="{style}"' if style else ""


def _text(value: object) -> str:
    return value if isinstance(value, Html) else escape(str(value))
