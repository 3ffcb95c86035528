"""What stands for the engine behind Dynamo's frontend, which cannot forward by HTTP: token ids at the pace of a file.

Run in Dynamo's own environment: `python worker.py MODEL_FOLDER PACE_FILE`. The file holds microseconds between tokens.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import uvloop
from dynamo.common.utils.runtime import create_runtime  # type: ignore[import-not-found]
from dynamo.llm import (  # type: ignore[import-not-found]
    ModelInput,
    ModelType,
    WorkerType,
    register_model,
)

TOKEN: Final = 500
DIM: Final = 384
VECTOR: Final = [((i * 2654435761) % 10007) / 50035.0 - 0.1 for i in range(DIM)]
DEFAULT_TOKENS: Final = 16
LOOK_SECONDS: Final = 0.05


class Engine:
    """Answers with one token over and over, and with one vector."""

    def __init__(self, pace_file: Path) -> None:
        self._pace_file = pace_file
        self._gap = 0.0

    async def follow_pace(self) -> None:
        """Read the file again and again."""
        while True:
            self._gap = int(self._pace_file.read_text()) / 1e6
            await asyncio.sleep(LOOK_SECONDS)

    async def generate(
        self, request: dict[str, Any], context: object = None
    ) -> AsyncIterator[dict[str, Any]]:
        """Yield one token id at a time, the first at once."""
        del context
        num = (request.get("stop_conditions") or {}).get("max_tokens") or DEFAULT_TOKENS
        loop = asyncio.get_running_loop()
        started, gap = loop.time(), self._gap
        for index in range(num):
            if gap and (wait := started + index * gap - loop.time()) > 0:
                await asyncio.sleep(wait)
            output: dict[str, Any] = {"token_ids": [TOKEN]}
            if index == num - 1:
                output["finish_reason"] = "length"
            yield output

    async def embed(self, request: dict[str, Any], context: object = None) -> AsyncIterator[dict[str, Any]]:
        """Yield one whole answer."""
        del context
        texts = request.get("input") or ""
        num = len(texts) if isinstance(texts, list) else 1
        yield {
            "object": "list",
            "data": [{"object": "embedding", "index": i, "embedding": VECTOR} for i in range(num)],
            "model": request.get("model", ""),
            "usage": {"prompt_tokens": 8 * num, "total_tokens": 8 * num},
        }


async def main(model: str, pace_file: Path) -> None:
    """Register and serve until killed."""
    runtime, _ = create_runtime("file", "tcp")
    engine = Engine(pace_file)
    generate = runtime.endpoint("dynamo.backend.generate")
    embed = runtime.endpoint("dynamo.embed.generate")
    await register_model(
        ModelInput.Tokens, ModelType.Chat | ModelType.Completions, generate, model, "mock-model",
        worker_type=WorkerType.Aggregated, ignore_weights=True,
    )  # fmt: skip
    await register_model(
        ModelInput.Text, ModelType.Embedding, embed, model, "mock-embed",
        worker_type=WorkerType.Aggregated, ignore_weights=True,
    )  # fmt: skip
    print("worker ready", flush=True)
    await asyncio.gather(
        engine.follow_pace(),
        generate.serve_endpoint(engine.generate),
        embed.serve_endpoint(engine.embed),
    )


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], Path(sys.argv[2])))
