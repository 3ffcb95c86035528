"""The promises of `sage_worker.engine.Engine` as a test class; a subclass names an engine and inherits the tests.

    class TestMine(EngineSuite):
        def make_engine(self) -> Engine: ...

Needs pytest, pytest-asyncio (auto mode) and jsonschema. Engines with at least two sequences and a context of at most
4096 tokens.
"""

from __future__ import annotations

import asyncio

import pytest

from sage_core import BadRequest, Cancelled, Conflict, ContextLengthExceeded
from sage_llm_worker.testing.engine_case import Answer, collect
from sage_llm_worker.testing.output_suite import OutputSuite
from sage_wire.messages import ChatPrompt, Generate
from sage_worker.engine import Engine

__all__ = ["Answer", "EngineSuite", "collect"]


class EngineSuite(OutputSuite):
    """Overwrite `make_engine`, and what follows where an engine needs another prompt or counts otherwise."""

    async def test_streams_deltas_then_exactly_one_completed(self, engine: Engine) -> None:
        """Several pieces, none of them empty, no half characters, honest usage."""
        answer = await collect(engine, self.request())
        assert len(answer.pieces) > 2
        assert all(piece.text or piece.token_ids for piece in answer.pieces)
        assert "\ufffd" not in answer.text
        assert answer.completed is not None
        assert answer.completed.usage.prompt_tokens > 0
        assert answer.completed.usage.completion_tokens == sum(piece.num_tokens for piece in answer.pieces)

    async def test_max_tokens_is_the_length_of_the_answer(self, engine: Engine) -> None:
        """And `length` says so."""
        answer = await collect(engine, self.request(max_tokens=7))
        assert answer.completed is not None
        assert answer.completed.finish_reason == "length"
        assert answer.completed.usage.completion_tokens == 7

    async def test_same_request_gives_same_text(self, engine: Engine) -> None:
        """With temperature 0, or a seed."""
        assert (await collect(engine, self.request())).text == (await collect(engine, self.request())).text
        seeded = [await collect(engine, self.request(temperature=0.8, seed=5)) for _ in range(2)]
        assert seeded[0].text == seeded[1].text

    async def test_stop_string_ends_the_answer_and_is_not_part_of_it(self, engine: Engine) -> None:
        """Also where it is spread over several tokens."""
        whole = (await collect(engine, self.request())).text
        stop = whole[len(whole) // 2 :][:5]
        answer = await collect(engine, self.request(stop=["never said", stop]))
        assert answer.text == whole[: whole.index(stop)]
        assert answer.completed is not None
        assert answer.completed.finish_reason == "stop"

    async def test_resume_continues_where_any_delta_ended(self, engine: Engine) -> None:
        """Nothing is repeated, nothing is missing, and `max_tokens` counts what was delivered."""
        whole = await collect(engine, self.request())
        for num_pieces in range(1, len(whole.pieces), max(1, len(whole.pieces) // 5)):
            resume = whole.first(num_pieces)
            rest = await collect(engine, self.request(resume=resume))
            assert resume.text + rest.text == whole.text
            assert rest.completed is not None
            assert whole.completed is not None
            assert rest.completed.usage == whole.completed.usage

    async def test_resume_with_a_stop_string_held_back_loses_nothing(self, engine: Engine) -> None:
        """A delta that ended just before a possible stop string is where it continues."""
        whole = (await collect(engine, self.request())).text
        stop = [whole[len(whole) // 2 :][:4] + "\x00never"]
        held = await collect(engine, self.request(stop=stop))
        assert held.text == whole
        for num_pieces in range(1, len(held.pieces), max(1, len(held.pieces) // 5)):
            resume = held.first(num_pieces)
            rest = await collect(engine, self.request(resume=resume, stop=stop))
            assert resume.text + rest.text == whole

    async def test_resuming_a_complete_answer_only_completes_it(self, engine: Engine) -> None:
        """The attempt that generated the last token may have died before it said so."""
        whole = await collect(engine, self.request(max_tokens=7))
        rest = await collect(engine, self.request(max_tokens=7, resume=whole.first(len(whole.pieces))))
        assert rest.pieces == []
        assert rest.completed is not None
        assert rest.completed.finish_reason == "length"

    async def test_abort_ends_the_iterator_with_cancelled_and_frees_the_sequence(
        self, engine: Engine
    ) -> None:
        """In the middle of an answer."""
        events = engine.generate("a", self.request(max_tokens=200))
        await anext(events)
        await engine.abort("a")
        with pytest.raises(Cancelled):
            async for _ in events:
                pass
        await self.until_free(engine)

    async def test_closing_the_iterator_frees_the_sequence(self, engine: Engine) -> None:
        """A consumer that has enough."""
        events = engine.generate("a", self.request(max_tokens=200))
        await anext(events)
        await events.aclose()
        await self.until_free(engine)

    async def test_cancelling_the_consumer_frees_the_sequence(self, engine: Engine) -> None:
        """A consumer that goes away."""
        task = asyncio.create_task(collect(engine, self.request(max_tokens=200)))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await self.until_free(engine)

    async def test_an_id_can_be_used_again_once_it_is_free(self, engine: Engine) -> None:
        """But not before."""
        events = engine.generate("a", self.request(max_tokens=200))
        await anext(events)
        with pytest.raises(Conflict):
            await collect(engine, self.request(), "a")
        await events.aclose()
        assert (await collect(engine, self.request(), "a")).completed is not None

    async def test_concurrent_requests_get_the_answers_they_get_alone(self, engine: Engine) -> None:
        """Whatever shares the batch."""
        alone = [await collect(engine, self.request(number)) for number in range(6)]
        together = await asyncio.gather(
            *(collect(engine, self.request(number), f"r{number}") for number in range(6))
        )
        for one, other in zip(alone, together, strict=True):
            assert other.completed is not None
            if self.is_batch_exact:
                assert one.text == other.text

    async def test_requests_beyond_the_batch_wait_and_are_answered(self) -> None:
        """With two sequences and seven requests."""
        engine = self.make_engine(max_sequences=2)
        await engine.start()
        try:
            assert engine.capacity.max_sequences == 2
            answers = await asyncio.gather(
                *(collect(engine, self.request(number), f"r{number}") for number in range(7))
            )
            assert all(answer.completed is not None for answer in answers)
        finally:
            await engine.stop()

    async def test_a_prompt_over_the_context_is_refused_before_the_first_event(self, engine: Engine) -> None:
        """And nobody else notices."""
        other = asyncio.create_task(collect(engine, self.request(), "other"))
        request = Generate(model="m", prompt=self.overlong_prompt())
        with pytest.raises(ContextLengthExceeded):
            await anext(engine.generate("long", request))
        with pytest.raises(ContextLengthExceeded):
            await anext(engine.generate("long", self.request(max_tokens=engine.capacity.max_context)))
        assert (await other).completed is not None

    async def test_impossible_requests_are_refused(self, engine: Engine) -> None:
        """With BadRequest, naming the field."""
        with pytest.raises(BadRequest) as refused:
            await collect(engine, self.request(max_tokens=0))
        assert refused.value.param == "max_tokens"
        with pytest.raises(BadRequest) as refused:
            await collect(engine, Generate(model="m", prompt=ChatPrompt(messages=[])))
        assert refused.value.param == "messages"

    async def test_stop_ends_what_runs_and_may_be_called_twice(self) -> None:
        """Requests end with Cancelled; unknown ids are ignored throughout."""
        engine = self.make_engine()
        await engine.start()
        await engine.abort("unknown")
        events = engine.generate("a", self.request(max_tokens=200))
        await anext(events)
        await engine.stop()
        with pytest.raises(Cancelled):
            async for _ in events:
                pass
        await engine.stop()
