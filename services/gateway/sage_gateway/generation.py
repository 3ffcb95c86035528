"""`/v1/chat/completions` and `/v1/completions`: text in, text out, whole or as it is generated."""

from __future__ import annotations

import time
from collections.abc import Sequence

from sage_core import Internal
from sage_gateway.bodies import CHAT_NO_EFFECT, COMPLETION_NO_EFFECT, ChatBody, CompletionBody
from sage_gateway.chunks import ChatChunks, Chunks, CompletionChunks
from sage_gateway.decoding import BodyDecoder
from sage_gateway.edge import Edge, Visit
from sage_gateway.event_stream import EventStream, Watch
from sage_gateway.in_flight import Ticket
from sage_gateway.metrics import TOKENS, TTFT_SECONDS
from sage_gateway.ports import Stream
from sage_gateway.replies import Choice, chat_body, completion_body, total_usage
from sage_gateway.translation import GenerationPlan, plan_chat, plan_completion
from sage_telemetry import semconv
from sage_wire.messages import Annotated, Completed, Event, ServedModel, Tokens, Usage

__all__ = ["GenerationRoutes"]


class GenerationRoutes:
    """Handlers of the two routes; SageErrors are left to the caller, also once a stream has started."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge
        self._chat = BodyDecoder(ChatBody, CHAT_NO_EFFECT)
        self._completion = BodyDecoder(CompletionBody, COMPLETION_NO_EFFECT)

    async def chat(self, visit: Visit) -> None:
        """Answer `POST /v1/chat/completions`."""
        exchange, edge = visit.exchange, self._edge
        body = await visit.read(self._chat)
        served = edge.catalog.resolve(body.model, ("generate", "pipeline"), edge.clock.now())
        plan = plan_chat(body, served)
        # A tier is echoed as what it became; `auto` is a question, not a tier.
        tier = "default" if plan.service_tier == "auto" else plan.service_tier
        created = int(time.time())
        with edge.admit(visit, served.name, semconv.OPERATION_CHAT, plan.service_tier) as ticket:
            if plan.is_streamed:
                chunks = ChatChunks(
                    exchange.request_id, created, served.name, tier, include_usage=plan.include_usage
                )
                await self._stream(visit, ticket, served, plan, chunks)
                return
            choices = await self._collect(visit, ticket, served, plan)
            await exchange.respond(
                200, chat_body(exchange.request_id, created, served.name, choices[0], tier)
            )

    async def complete(self, visit: Visit) -> None:
        """Answer `POST /v1/completions`."""
        exchange, edge = visit.exchange, self._edge
        body = await visit.read(self._completion)
        served = edge.catalog.resolve(body.model, ("generate",), edge.clock.now())
        plan = plan_completion(body, served)
        created = int(time.time())
        with edge.admit(visit, served.name, semconv.OPERATION_TEXT_COMPLETION, plan.service_tier) as ticket:
            if plan.is_streamed:
                chunks = CompletionChunks(
                    exchange.request_id,
                    created,
                    served.name,
                    len(plan.works),
                    include_usage=plan.include_usage,
                )
                await self._stream(visit, ticket, served, plan, chunks)
                return
            choices = await self._collect(visit, ticket, served, plan)
            await exchange.respond(200, completion_body(exchange.request_id, created, served.name, choices))

    async def _collect(
        self, visit: Visit, ticket: Ticket, served: ServedModel, plan: GenerationPlan
    ) -> list[Choice]:
        # All choices are generated at once; reading them in turn only decides in which order they are picked up.
        streams = [ticket.submit(served.name, work) for work in plan.works]
        async with Watch(visit.exchange, self._edge.settings, ticket.cancel):
            choices = [await self._choice(visit, stream) for stream in streams]
        _count(visit, [choice.usage for choice in choices], [choice.finish_reason for choice in choices])
        return choices

    async def _choice(self, visit: Visit, stream: Stream) -> Choice:
        choice = Choice()
        while True:
            for event in await stream.next_batch():
                match event:
                    case Tokens():
                        if not choice.texts:
                            self._note_first_token(visit)
                        choice.texts.append(event.text)
                    case Annotated():
                        choice.extras.add(event)
                    case Completed():
                        choice.finish_reason, choice.usage = event.finish_reason, event.usage
                        return choice
                    case _:
                        raise Internal(f"the worker sent {type(event).__name__} for generated text")

    async def _stream(
        self, visit: Visit, ticket: Ticket, served: ServedModel, plan: GenerationPlan, chunks: Chunks
    ) -> None:
        settings = self._edge.settings
        events = EventStream(visit.exchange, settings.max_backlog)
        streams = [ticket.submit(served.name, work) for work in plan.works]
        ends: list[Completed] = []
        is_silent = True
        async with Watch(visit.exchange, settings, ticket.cancel, events):
            # Choices are generated at once and sent one after the other, which needs no task per choice.
            for index, stream in enumerate(streams):
                while len(ends) == index:
                    batch = await stream.next_batch()
                    if is_silent and _has_text(batch):
                        is_silent = False
                        self._note_first_token(visit)
                    data = chunks.add(index, batch)
                    last = batch[-1]
                    if isinstance(last, Completed):
                        ends.append(last)
                    if len(ends) == len(streams):
                        await events.finish(data + chunks.end())
                    elif data:
                        await events.send(data)
        _count(visit, [end.usage for end in ends], [end.finish_reason for end in ends])

    def _note_first_token(self, visit: Visit) -> None:
        seconds = self._edge.clock.now() - visit.exchange.started_at
        TTFT_SECONDS.labels(visit.route).observe(seconds)
        visit.span.set(semconv.TTFT_MS, round(seconds * 1000, 3))


def _has_text(batch: Sequence[Event]) -> bool:
    return any(isinstance(event, Tokens) for event in batch)


def _count(visit: Visit, usages: Sequence[Usage], finish_reasons: list[str]) -> None:
    usage = total_usage(usages)
    TOKENS.labels("prompt").inc(usage.prompt_tokens)
    TOKENS.labels("completion").inc(usage.completion_tokens)
    if visit.span.is_recording:
        visit.span.set(semconv.GEN_AI_USAGE_INPUT_TOKENS, usage.prompt_tokens)
        visit.span.set(semconv.GEN_AI_USAGE_OUTPUT_TOKENS, usage.completion_tokens)
        visit.span.set(semconv.GEN_AI_RESPONSE_FINISH_REASONS, finish_reasons)
