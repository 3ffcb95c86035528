"""The title and the main text of an HTML page: no navigation, scripts or style."""

from __future__ import annotations

import re

from selectolax.lexbor import LexborHTMLParser, LexborNode

__all__ = ["read_html"]

_DROPPED = (
    "script", "style", "noscript", "template", "svg", "iframe", "form", "nav", "header", "footer", "aside",
    "[role=navigation]", "[role=search]", "[aria-hidden=true]", ".sphinxsidebar", ".related", ".headerlink",
    ".navheader", ".navfooter", ".toc", "#toc",
)  # fmt: skip
_MAIN = ("main", "[role=main]", "article", "#content", "body")
_BLOCKS = (
    "address, article, blockquote, br, dd, div, dl, dt, figcaption, figure, h1, h2, h3, h4, h5, h6, hr, li, ol, p, "
    "pre, section, table, tr, ul"
)
_CELLS = "td, th"
_SPACES = re.compile(r"[^\S\n]+")
_BREAKS = re.compile(r"\s*\n\s*\n\s*")
_MIN_MAIN_CHARS = 100


def read_html(page: str) -> tuple[str | None, str]:
    """Return (title, text): paragraphs are separated by an empty line, runs of spaces are one."""
    tree = LexborHTMLParser(page)
    heading = tree.css_first("title") or tree.css_first("h1")
    title = _SPACES.sub(" ", heading.text(deep=True).replace("\n", " ")).strip() if heading else ""
    for node in tree.css(", ".join(_DROPPED)):
        # A page may wrap everything in a <header> or <form>; its headings inside <main> go with it only if outside.
        if not _holds_main(node):
            node.decompose()
    for node in tree.css(_BLOCKS):
        node.insert_before("\n\n")
        node.insert_after("\n\n")
    for node in tree.css(_CELLS):
        node.insert_after(" ")
    text = ""
    for selector in _MAIN:
        root = tree.css_first(selector)
        if root is not None:
            text = _clean(root.text(deep=True))
            if len(text) >= _MIN_MAIN_CHARS:
                break
    return title or None, text


def _holds_main(node: LexborNode) -> bool:
    return node.css_first("main, [role=main], article, body") is not None


def _clean(text: str) -> str:
    return _BREAKS.sub("\n\n", _SPACES.sub(" ", text)).strip()
