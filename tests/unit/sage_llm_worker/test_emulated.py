"""What load tests rely on."""

import asyncio
import time
from itertools import pairwise

import pytest

from sage_client.work_size import measure
from sage_core import ConfigurationError
from sage_llm_worker.engines import emulated
from sage_llm_worker.engines.emulated import EmulatedEngine
from sage_llm_worker.testing.engine_suite import collect
from sage_native import EngineModel
from sage_policy import EngineProfile
from sage_wire.messages import ChatMessage, ChatPrompt, Completed, Generate, Resume, Sampling, TextPrompt

STEPS = EngineProfile(a0=0.004, a1=0.001, m0=0.006, m1=2e-5, max_step_tokens=256, max_sequences=8)


def request(text="hello", **sampling):
    return Generate(model="m", prompt=TextPrompt(text=text), sampling=Sampling(**sampling))


def marked(num_tokens, **sampling):
    return request(f"hello\nsage-output-tokens: {num_tokens}", **sampling)


async def arrivals(engine, request, request_id, times):
    async for event in engine.generate(request_id, request):
        if not isinstance(event, Completed):
            times.append(time.monotonic())


async def test_steps_take_as_long_as_the_profile_says():
    engine = EmulatedEngine(profile=EngineProfile(a0=0.002, m0=0.002))
    await engine.start()
    started = time.perf_counter()
    answers = await asyncio.gather(*(collect(engine, request(max_tokens=15), f"r{n}") for n in range(8)))
    elapsed = time.perf_counter() - started
    await engine.stop()
    # Eight sequences share each step: the time of one.
    assert 15 * 0.002 <= elapsed < 4 * 15 * 0.002
    assert answers[0].completed.timings.prefill_ms >= 2


async def test_every_token_leaves_when_the_engine_model_says_so():
    prompts = {1: (40, 12), 2: (700, 9), 3: (130, 20)}
    model = EngineModel(**{k: getattr(STEPS, k) for k in STEPS.__struct_fields__ if k != "description"})
    expected, now = {number: [] for number in prompts}, 0.0
    for number, (num_prompt, num_output) in prompts.items():
        model.submit(number, num_prompt, num_output=num_output)
    while not model.is_idle:
        seconds, emitting = model.step()
        now += seconds
        for number in emitting:
            expected[number].append(now)

    engine = EmulatedEngine(profile=STEPS)
    await engine.start()
    started = time.monotonic()
    times = {number: [] for number in prompts}
    tasks = [
        arrivals(
            engine, request(str(number) * 4 * num_prompt, max_tokens=num_output), f"r{number}", times[number]
        )
        for number, (num_prompt, num_output) in prompts.items()
    ]
    await asyncio.gather(*tasks)
    await engine.stop()
    for number, at in expected.items():
        late = [actual - started - due for actual, due in zip(times[number], at, strict=True)]
        assert min(late) >= 0
        # Late wake-ups do not add up: the steps follow their own clock.
        assert sorted(late)[len(late) // 2] < 0.02


async def test_noise_spreads_the_steps_and_keeps_their_mean():
    engine = EmulatedEngine(profile=EngineProfile(a0=0.002, m0=0.002), noise_sigma=0.5)
    await engine.start()
    times = []
    await arrivals(engine, request(max_tokens=150), "r", times)
    await engine.stop()
    steps = [after - before for before, after in pairwise(times)]
    assert max(steps) > 2 * min(steps)
    assert 0.0016 < sum(steps) / len(steps) < 0.004


async def test_the_loop_stays_free_without_delay():
    engine = EmulatedEngine(default_tokens=2000)
    await engine.start()
    running = asyncio.create_task(collect(engine, request()))
    turns = 0
    while not running.done():
        await asyncio.sleep(0)
        turns += 1
    await engine.stop()
    assert turns >= 1000


async def test_seeds_and_prompts_change_the_text():
    engine = EmulatedEngine()
    await engine.start()
    texts = {(await collect(engine, request(max_tokens=12, seed=seed))).text for seed in range(20)}
    await engine.stop()
    assert len(texts) == 20


async def test_without_max_tokens_the_answer_ends_by_itself():
    engine = EmulatedEngine(default_tokens=9)
    await engine.start()
    answer = await collect(engine, request())
    await engine.stop()
    assert answer.completed.finish_reason == "stop"
    assert answer.completed.usage.completion_tokens == 9


@pytest.mark.parametrize(
    ("mark", "max_tokens", "expected", "reason"),
    [
        (7, 30, 7, "stop"),
        (7, None, 7, "stop"),
        (300, None, 300, "stop"),
        (30, 7, 7, "length"),
        (0, 5, 1, "stop"),
    ],
)
async def test_the_last_line_of_a_prompt_may_say_how_long_the_answer_is(mark, max_tokens, expected, reason):
    engine = EmulatedEngine()
    await engine.start()
    chat = ChatPrompt(
        messages=[
            ChatMessage(role="system", content="sage-output-tokens: 99"),
            ChatMessage(role="user", content=f"hello\nsage-output-tokens: {mark}\n"),
        ]
    )
    answers = [
        await collect(engine, marked(mark, max_tokens=max_tokens)),
        await collect(engine, Generate(model="m", prompt=chat, sampling=Sampling(max_tokens=max_tokens))),
    ]
    await engine.stop()
    for answer in answers:
        assert answer.completed.finish_reason == reason
        assert answer.completed.usage.completion_tokens == expected


async def test_a_length_in_the_middle_of_a_prompt_is_only_text():
    engine = EmulatedEngine(default_tokens=9)
    await engine.start()
    for text in ("sage-output-tokens: 3\nhello", "say sage-output-tokens: 3", "sage-output-tokens: three"):
        answer = await collect(engine, request(text))
        assert answer.completed.usage.completion_tokens == 9
    await engine.stop()


async def test_a_resumed_answer_ends_where_the_whole_one_does():
    engine = EmulatedEngine()
    await engine.start()
    whole = await collect(engine, marked(12, max_tokens=50))
    resume = whole.first(5)
    rest = await collect(
        engine, Generate(model="m", prompt=marked(12).prompt, sampling=Sampling(max_tokens=50), resume=resume)
    )
    told = await collect(
        engine,
        Generate(
            model="m",
            prompt=marked(12).prompt,
            sampling=Sampling(max_tokens=50),
            resume=Resume(text="", num_tokens=12),
        ),
    )
    await engine.stop()
    assert resume.text + rest.text == whole.text
    assert rest.completed.usage == whole.completed.usage
    assert (told.pieces, told.completed.finish_reason) == ([], "stop")


async def test_prompts_count_as_many_tokens_as_the_scheduler_is_told():
    engine = EmulatedEngine()
    await engine.start()
    prompts = [
        TextPrompt(text="x" * 4001),
        TextPrompt(text="語" * 100),
        ChatPrompt(
            messages=[ChatMessage(role="user", content="a" * 9), ChatMessage(role="user", content="b")]
        ),
    ]
    for prompt in prompts:
        work = Generate(model="m", prompt=prompt, sampling=Sampling(max_tokens=1))
        answer = await collect(engine, work)
        assert answer.completed.usage.prompt_tokens == measure(work).num_prompt_tokens
    await engine.stop()


async def test_a_repeated_prefix_is_found_in_the_cache_and_told_once():
    engine = EmulatedEngine()
    await engine.start()
    document = "0123456789abcdef" * 200
    first = await collect(engine, request(document + "What?", max_tokens=3))
    second = await collect(engine, request(document + "Where?", max_tokens=3))
    await engine.stop()
    assert first.completed.usage.cached_tokens == 0
    assert second.completed.usage.cached_tokens == 3200 // 4 // 128 * 128
    assert [piece.num_cached for piece in second.pieces] == [768, 0, 0]


async def test_prefixes_are_shared_only_where_the_engines_blocks_fit_into_those_of_the_protocol():
    answers = {}
    for block_tokens in (16, 128, 48, 256):
        engine = EmulatedEngine(profile=EngineProfile(block_tokens=block_tokens))
        await engine.start()
        for _ in range(2):
            answers[block_tokens] = await collect(engine, request("x" * 4096, max_tokens=3))
        await engine.stop()
    cached = {size: answer.completed.usage.cached_tokens for size, answer in answers.items()}
    assert cached == {16: 1008, 128: 896, 48: 0, 256: 0}


async def test_a_long_name_in_a_chat_does_not_count_as_more_blocks_than_the_prompt_has():
    engine = EmulatedEngine()
    await engine.start()
    chat = ChatPrompt(messages=[ChatMessage(role="user", content="hi", name="n" * 4000)])
    work = Generate(model="m", prompt=chat, sampling=Sampling(max_tokens=2))
    answers = [await collect(engine, work) for _ in range(2)]
    await engine.stop()
    assert [answer.completed.usage.cached_tokens for answer in answers] == [0, 0]


async def test_an_idle_engine_reports_nothing_running():
    engine = EmulatedEngine()
    await engine.start()
    await collect(engine, request(max_tokens=3))
    stats = engine.stats()
    await engine.stop()
    assert (stats.num_running, stats.num_waiting, stats.num_generated) == (0, 0, 3)


async def test_limits_that_no_engine_can_have_are_refused_in_one_line():
    engine = EmulatedEngine(profile=EngineProfile(max_step_tokens=16, max_sequences=32))
    with pytest.raises(
        ConfigurationError, match="max_step_tokens is 16; expected at least max_sequences, 32"
    ):
        await engine.start()


async def test_a_first_token_leaves_before_the_other_tokens_of_its_step(monkeypatch):
    heard: list[str] = []

    class Recording:
        """asyncio, whose sleeps between two steps are noted."""

        def __getattr__(self, name):
            return getattr(asyncio, name)

        async def sleep(self, seconds):
            await asyncio.sleep(seconds)
            if seconds > 0:
                heard.append("step")

    async def listen(name, num_tokens):
        async for _ in engine.generate(name, request(max_tokens=num_tokens)):
            heard.append(name)  # noqa: PERF401 - as they come

    monkeypatch.setattr(emulated, "asyncio", Recording())
    engine = EmulatedEngine(profile=EngineProfile(a0=0.005, m0=0.005))
    await engine.start()
    async with asyncio.TaskGroup() as group:
        for number in range(4):
            group.create_task(listen(f"old {number}", 40))
        while heard.count("old 3") < 3:  # noqa: ASYNC110 - a few steps of the engine
            await asyncio.sleep(0)
        group.create_task(listen("new", 3))
    await engine.stop()

    assert heard[heard.index("new") - 1] == "step"
