"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["ApiKey", "AsJson", "Collection", "Name"]

ApiKey = Annotated[
    str | None, typer.Option(envvar="OPENAI_API_KEY", help="Key, where the gateway asks for one.")
]
Name = Annotated[
    str, typer.Option(help="Instance of this machine; each has its own ports, folders and logs.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Collection = Annotated[str, typer.Option(help="Collection of indexed documents.")]
