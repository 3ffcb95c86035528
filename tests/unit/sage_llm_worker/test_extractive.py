"""The reader quotes what answers the question, says where it stands, and never pretends."""

import asyncio

import numpy as np
import pytest

from sage_core import Unavailable
from sage_llm_worker.engines.extractive import EXTRACTIVE_MODEL, ExtractiveEngine
from sage_llm_worker.testing.engine_suite import collect
from sage_wire.messages import ChatMessage, ChatPrompt, Generate, Resume, Sampling, TokenPrompt

CONTEXT = """<context>
[1] install.txt
Debian packages are managed with apt. To install a package, run: apt install NAME.
You need root privileges for it.

[2] cron manual
Cron runs jobs at fixed times. Entries of the crontab file are edited with crontab -e.

[3] removal
Removing a package keeps its configuration files unless --purge is given.
</context>"""


def ask(question, *, context=CONTEXT, resume=None, **sampling):
    messages = [ChatMessage(role="user", content=context)] if context else []
    messages.append(ChatMessage(role="user", content=question))
    return Generate(
        model=EXTRACTIVE_MODEL,
        prompt=ChatPrompt(messages=messages),
        sampling=Sampling(**sampling),
        resume=resume,
    )


async def answer(question, embed=None, **options):
    return (await collect(ExtractiveEngine(embed), ask(question, **options))).text


@pytest.mark.parametrize(
    ("question", "quote", "number"),
    [
        ("How do I install a package?", "apt install NAME", 1),
        ("How do I edit my crontab?", "crontab -e", 2),
        ("Do configuration files stay after removing a package?", "unless --purge", 3),
    ],
)
async def test_the_answer_quotes_the_right_passage_with_its_number(question, quote, number):
    text = await answer(question)
    assert quote in text
    assert f"” [{number}]" in text


async def test_every_quotation_is_in_the_prompt_word_for_word():
    text = await answer("Who edits packages, cron jobs and configuration files?")
    flat = " ".join(CONTEXT.split())
    for quotation in text.split("“")[1:]:
        assert quotation.split("”")[0] in flat


async def test_vectors_find_what_words_do_not():
    async def embed(texts):
        # "schedule" means the same as "cron" here.
        return np.array(
            [[1.0, 0.0] if "Cron" in text or "schedule" in text else [0.0, 1.0] for text in texts], np.float32
        )

    assert "Cron runs jobs" in await answer("How to schedule something?", embed)
    assert "Cron runs jobs" not in await answer("How to schedule something?")


async def test_nothing_relevant_is_said_so():
    assert (await answer("What is photosynthesis?")).startswith("None of the passages speaks of this")


async def test_without_context_it_says_how_to_add_a_model():
    text = await answer("Write me a poem.", context="")
    assert "No generative model is configured" in text
    assert "sage up --model NAME" in text


async def test_a_pool_that_does_not_answer_costs_its_budget_once():
    calls = []

    async def embed(texts):
        calls.append(len(texts))
        await asyncio.sleep(30)

    engine = ExtractiveEngine(embed, embed_budget=0.02)
    for _ in range(3):
        assert "apt install" in (await collect(engine, ask("How do I install a package?"))).text
    assert len(calls) == 1


async def test_a_failing_pool_is_no_failure_of_the_answer():
    async def embed(texts):
        raise Unavailable("nobody serves it")

    assert "apt install" in await answer("How do I install a package?", embed)


async def test_abort_while_it_waits_for_vectors_frees_it():
    entered = asyncio.Event()

    async def embed(texts):
        entered.set()
        await asyncio.sleep(30)

    from sage_core import Cancelled

    engine = ExtractiveEngine(embed, embed_budget=20)
    task = asyncio.create_task(collect(engine, ask("How do I install a package?"), "a"))
    await entered.wait()
    await engine.abort("a")
    with pytest.raises(Cancelled):
        await task
    assert engine.stats().num_running == 0


async def test_resuming_with_another_ranking_adds_only_what_was_not_quoted():
    whole = await answer("How do I install a package?")
    delivered = Resume(text=f"Quoted from the passages:\n\n“Something else.” [3]\n\n{whole.splitlines()[-1]}")
    assert await answer("How do I install a package?", resume=delivered) == ""
    delivered = Resume(text="Quoted from the passages:\n\n“Something else.” [3]")
    rest = await answer("How do I install a package?", resume=delivered)
    assert rest.startswith("\n\n“")


async def test_usage_counts_words_and_punctuation():
    result = await collect(ExtractiveEngine(), ask("Hi, you!", context=""))
    assert result.completed.usage.prompt_tokens == 4


async def test_token_prompts_are_refused():
    from sage_core import BadRequest

    with pytest.raises(BadRequest, match="reads text"):
        await collect(ExtractiveEngine(), Generate(model="m", prompt=TokenPrompt(token_ids=[1])))
