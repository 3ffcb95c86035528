"""A scheduler's receipt as text."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sage_wire.messages import Receipt

__all__ = ["receipt_text"]


def receipt_text(receipt: Receipt) -> Group:
    """Return the decision in a sentence, then the candidates, best first."""
    head = Text.assemble((receipt.decision, "bold"), f": {receipt.reason}")
    facts = [
        f"request {receipt.request_id}, attempt {receipt.attempt}, pool {receipt.pool}, policy {receipt.policy}",
        f"waited {receipt.queue_ms:.1f} ms, {receipt.num_queued} queued when decided",
    ]
    if receipt.chosen is not None:
        facts.append(f"chosen: {receipt.chosen}")
    if receipt.predicted_ms is not None or receipt.actual_ms is not None:
        facts.append(f"predicted {_ms(receipt.predicted_ms)}, took {_ms(receipt.actual_ms)}")
    parts: list[RenderableType] = [head, *(Text(fact) for fact in facts)]
    if receipt.candidates:
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("candidate")
        table.add_column("score", justify="right")
        table.add_column("not used because")
        for candidate in sorted(receipt.candidates, key=lambda each: (each.reason != "", each.score)):
            table.add_row(candidate.instance_id, f"{candidate.score:.3f}", candidate.reason)
        parts.append(table)
    return Group(*parts)


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} ms"
