"""Elements of HTML and SVG as text; the one place where text becomes markup, so that all of it is escaped."""

from __future__ import annotations

import html
from typing import NewType

from penstock.dash.figures import one_line

__all__ = ["Markup", "element", "escaped", "joined"]

Markup = NewType("Markup", str)


def escaped(text: object, most: int = 400) -> Markup:
    """Text for between tags or within an attribute; control characters are replaced."""
    return Markup(html.escape(one_line(str(text), most), quote=True))


def joined(*parts: Markup) -> Markup:
    """Parts after each other."""
    return Markup("".join(parts))


def element(tag: str, *children: Markup, **attributes: object) -> Markup:
    """An element; ``class_`` is ``class``, ``_`` elsewhere ``-``; floats are rounded, None is left out."""
    written = []
    for name, value in attributes.items():
        if value is None:
            continue
        # A path outgrows any limit on text of data, and is made of our own numbers.
        most = 1_000_000 if name in ("d", "points") else 400
        text = f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
        key = name.rstrip("_") if name == "class_" else _ATTRIBUTES.get(name, name.replace("_", "-"))
        written.append(f' {key}="{escaped(text, most)}"')
    return Markup(f"<{tag}{''.join(written)}>{''.join(children)}</{tag}>")


_ATTRIBUTES = {"view_box": "viewBox", "for_": "for"}
