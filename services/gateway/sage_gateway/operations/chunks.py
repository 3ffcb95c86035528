"""The parts of stream events that never change within a request, encoded once."""

from __future__ import annotations

from typing import Final

import msgspec

from sage_gateway.operations.usage import usage_body
from sage_wire.messages import Usage

__all__ = ["DONE", "ChunkTemplate", "encode"]

DONE: Final = b"data: [DONE]\n\n"
_END: Final = b"}\n\n"

encode = msgspec.json.Encoder().encode


class ChunkTemplate:
    """The beginning and the end of every chunk of a stream.

    With `includes_usage`, every chunk but the one that carries it says `"usage": null`.
    """

    __slots__ = ("end", "head", "usage_null")

    def __init__(
        self,
        kind: bytes,
        request_id: str,
        created: int,
        model: str,
        fingerprint: str,
        service_tier: str | None,
        *,
        includes_usage: bool,
    ) -> None:
        tier = b"" if service_tier is None else b',"service_tier":' + encode(service_tier)
        self.head = b'data: {"id":%b,"object":"%b","created":%d,"model":%b,"system_fingerprint":%b%b' % (
            encode(request_id),
            kind,
            created,
            encode(model),
            encode(fingerprint),
            tier,
        )
        self.usage_null = b',"usage":null' if includes_usage else b""
        self.end = self.usage_null + _END

    def with_usage(self, usage: Usage, num_reasoning: int = 0) -> bytes:
        """Return the end of a chunk that carries the usage until now."""
        return b',"usage":%b%b' % (encode(usage_body(usage, num_reasoning)), _END)

    def last(self, usage: Usage, num_reasoning: int = 0) -> bytes:
        """Return the chunk with the usage of the whole request and no choices."""
        return self.head + b',"choices":[]' + self.with_usage(usage, num_reasoning)
