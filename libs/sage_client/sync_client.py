"""`UnifiedInferenceClient` for code without an event loop: the same calls, blocking."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine, Iterator, Sequence
from concurrent.futures import CancelledError as FutureCancelled
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import numpy as np
from numpy.typing import NDArray

from sage_client.catalog import AUTO
from sage_client.client import ChatResult, Messages, SamplingOptions, UnifiedInferenceClient
from sage_core import Unavailable
from sage_wire.messages import Event, Hit, ServedModel

__all__ = ["SyncInferenceClient"]

T = TypeVar("T")


class SyncInferenceClient:
    """Holds a client and its event loop in one background thread; safe to call from any thread.

    Use as `with SyncInferenceClient(url) as client`. Connects at once. Methods and errors are those of
    `UnifiedInferenceClient`. Interrupting a call (KeyboardInterrupt) cancels its work.
    """

    def __init__(self, url: str, *, budget: float = 60.0, tenant: str = "default") -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="sage-client", daemon=True)
        self._thread.start()
        self._client = UnifiedInferenceClient(url, budget=budget, tenant=tenant)
        try:
            self._wait(self._client.start())
        except BaseException:
            self._stop_loop()
            raise

    def close(self) -> None:
        """Cancel what is open, disconnect, end the thread. Idempotent."""
        if self._thread.is_alive():
            try:
                self._wait(self._client.close())
            finally:
                self._stop_loop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def models(self) -> list[ServedModel]:
        """See `UnifiedInferenceClient.models`."""

        async def models() -> list[ServedModel]:
            return self._client.models()

        return self._wait(models())

    def chat(
        self,
        model: str,
        messages: Messages,
        *,
        budget: float | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> ChatResult:
        """See `UnifiedInferenceClient.chat`."""
        return self._wait(self._client.chat(model, messages, budget=budget, **sampling))

    def stream_chat(
        self,
        model: str,
        messages: Messages,
        *,
        budget: float | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> Iterator[Event]:
        """Yield Tokens, Annotated and Completed as they come; closing the iterator cancels the request."""
        stream = self._wait(self._client.stream_chat(model, messages, budget=budget, **sampling))
        try:
            while True:
                try:
                    batch = self._wait(stream.next_batch())
                except StopAsyncIteration:
                    return
                yield from batch
        finally:
            # Closing the client has cancelled the request already, and its loop is gone.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(stream.cancel)

    def embed(
        self,
        model: str,
        texts: Sequence[str],
        *,
        dimensions: int | None = None,
        budget: float | None = None,
    ) -> NDArray[np.float32]:
        """See `UnifiedInferenceClient.embed`."""
        return self._wait(self._client.embed(model, texts, dimensions=dimensions, budget=budget))

    def rerank(
        self, model: str, query: str, documents: Sequence[str], *, budget: float | None = None
    ) -> list[float]:
        """See `UnifiedInferenceClient.rerank`."""
        return self._wait(self._client.rerank(model, query, documents, budget=budget))

    def retrieve(
        self,
        collection: str,
        query: str,
        *,
        top_k: int = 5,
        mode: str = "hybrid",
        embedding_model: str = AUTO,
        budget: float | None = None,
    ) -> list[Hit]:
        """See `UnifiedInferenceClient.retrieve`."""
        return self._wait(
            self._client.retrieve(
                collection, query, top_k=top_k, mode=mode, embedding_model=embedding_model, budget=budget
            )
        )

    def _wait(self, call: Coroutine[Any, Any, T]) -> T:
        if not self._thread.is_alive():
            call.close()
            raise Unavailable("the client is closed")
        future = asyncio.run_coroutine_threadsafe(call, self._loop)
        try:
            return future.result()
        except FutureCancelled:
            raise Unavailable("the client was closed during the call") from None
        except BaseException:
            future.cancel()
            raise

    def _stop_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
