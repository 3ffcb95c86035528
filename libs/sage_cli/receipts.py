"""A scheduler's receipt as text."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sage_wire.messages import DecisionFacts, Receipt, ReceiptTimes

__all__ = ["receipt_text"]


def receipt_text(receipt: Receipt) -> Group:
    """Return the decision in a sentence, then the candidates, best first."""
    head = Text.assemble((receipt.decision, "bold"), f": {receipt.reason}")
    facts = [
        f"request {receipt.request_id}, attempt {receipt.attempt}, pool {receipt.pool}, policy {receipt.policy}",
        f"waited {receipt.queue_ms:.1f} ms, {receipt.num_queued} queued when decided",
    ]
    if receipt.chosen is not None:
        facts.append(f"chosen: {receipt.chosen}{_batch(receipt.facts)}")
    parts: list[RenderableType] = [head, *(Text(fact) for fact in facts)]
    if receipt.facts is not None:
        parts += [Text(line) for line in _fact_lines(receipt.facts)]
    times = _times(receipt)
    if times is not None:
        parts.append(times)
    actual = receipt.actual
    if actual is not None and (actual.num_tokens or actual.num_cached):
        parts.append(Text(f"{actual.num_tokens} tokens, {actual.num_cached} prompt tokens from the cache"))
    if receipt.candidates:
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("candidate")
        table.add_column("score", justify="right")
        table.add_column("not used because")
        for candidate in sorted(receipt.candidates, key=lambda each: (each.reason != "", each.score)):
            table.add_row(candidate.instance_id, f"{candidate.score:.3f}", candidate.reason)
        parts.append(table)
    return Group(*parts)


def _batch(facts: DecisionFacts | None) -> str:
    if facts is None or not facts.batch:
        return ""
    return f", in batch {facts.batch} of {facts.batch_size}"


def _fact_lines(facts: DecisionFacts) -> list[str]:
    lines = [f"decided by {facts.scheduler_id}, fence {facts.fence}"]
    if facts.code:
        wait = "" if facts.retry_after is None else f", retry after {facts.retry_after:.1f} s"
        lines.append(f"refused with {facts.code}{wait}")
    return lines


def _times(receipt: Receipt) -> Table | None:
    """Return predicted beside actual times; None where there is neither."""
    predicted, actual = receipt.predicted or ReceiptTimes(), receipt.actual or ReceiptTimes()
    rows = [
        ("first token", predicted.ttft_ms, actual.ttft_ms),
        ("per token after it", predicted.tpot_ms, actual.tpot_ms),
        ("whole request", receipt.predicted_ms, receipt.actual_ms),
    ]
    if all(value is None for _, *values in rows for value in values):
        return None
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("from dispatch on")
    table.add_column("predicted", justify="right")
    table.add_column("took", justify="right")
    for name, expected, found in rows:
        table.add_row(name, _ms(expected), _ms(found))
    return table


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} ms"
