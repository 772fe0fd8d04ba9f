"""What cleaning has found, with a link to its page."""

from __future__ import annotations

from html import escape
from pathlib import Path

from detectkit import page
from detectkit.pipeline.products import Role
from detectkit.report.folder import RunFolder, read_json, shown

PAGE, LIST = "cleaning.html", "cleaning.csv"


def findings(run: RunFolder) -> str:
    """A table of the kinds for each look at the data, the last one last; empty where there was none."""
    parts: list[str] = []
    for product in run.of(Role.FINDINGS):
        path = Path(product.path)
        content = read_json(path, []) or {}
        kinds = [item for item in _list(content.get("kinds")) if isinstance(item, list) and len(item) == 3]
        if not content:
            continue
        link = page.Html(
            f'<a href="{escape(shown(run, path.with_name(PAGE)))}">the page with all pictures</a>'
        )
        told = (
            f"{content.get('images', 0)} images: nothing found; "
            if not kinds
            else f"{content.get('images', 0)} images; "
        )
        parts += [
            page.heading(product.title, level=3),
            page.paragraph(
                page.joined(told, link, f"; decisions: {shown(run, path.with_name(LIST))}"), style="note"
            ),
        ]
        if kinds:
            parts.append(page.table(["", "findings"], [[title, count] for _, title, count in kinds]))
        figures = [page.Html(text) for text in _list(content.get("first")) if isinstance(text, str)]
        parts += [page.grid(figures, small=True)] if figures else []
    return "\n".join(parts)


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []
