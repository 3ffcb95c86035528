"""Text with named slots, `{{name}}`. Slots are replaced once; nothing is evaluated and values are never read again."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["MAX_TEMPLATE_CHARS", "Template", "TemplateError", "parse_template"]

MAX_TEMPLATE_CHARS = 16_384
_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")


class TemplateError(ValueError):
    """The template is malformed; `line` and `column` count from 1 inside it."""

    def __init__(self, message: str, line: int, column: int) -> None:
        super().__init__(f"{message} (line {line}, column {column} of the template)")
        self.line = line
        self.column = column


@dataclass(frozen=True, slots=True)
class Template:
    """A parsed template: literal text and slots in turn; `texts` is one longer than `slots`."""

    texts: tuple[str, ...]
    slots: tuple[str, ...]

    def render(self, values: Mapping[str, str]) -> str:
        """Fill every slot. Raises KeyError for a slot without a value."""
        parts = [self.texts[0]]
        for slot, text in zip(self.slots, self.texts[1:], strict=True):
            parts += (values[slot], text)
        return "".join(parts)


def parse_template(text: str) -> Template:
    """Parse `text`. Raises TemplateError for an open slot or anything but a name inside one."""
    texts, slots, position = [], [], 0
    while (opened := text.find("{{", position)) >= 0:
        closed = text.find("}}", opened + 2)
        line, column = text.count("\n", 0, opened) + 1, opened - text.rfind("\n", 0, opened)
        if closed < 0:
            raise TemplateError("a slot is opened with '{{' and never closed with '}}'", line, column)
        name = text[opened + 2 : closed].strip()
        if _NAME.fullmatch(name) is None:
            found = name if len(name) <= 40 else name[:40] + "…"
            raise TemplateError(
                f"slot '{found}' is not a name; slots hold a name and nothing else", line, column
            )
        texts.append(text[position:opened])
        slots.append(name)
        position = closed + 2
    texts.append(text[position:])
    return Template(tuple(texts), tuple(slots))
