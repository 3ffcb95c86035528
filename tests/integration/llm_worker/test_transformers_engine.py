"""The transformers engine with a real, tiny Llama on the CPU."""

import asyncio

import pytest

from sage_core import BadRequest, ConfigurationError
from sage_llm_worker.testing.engine_suite import EngineSuite, collect
from sage_wire.messages import (
    ChatMessage,
    ChatPrompt,
    Generate,
    OneOf,
    Resume,
    Sampling,
    TextPrompt,
    TokenBias,
    Tokenize,
    TokenPrompt,
    Tokens,
    ToolDefinition,
)

pytest.importorskip("transformers")
pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    from sage_llm_worker.testing import tiny_llama

    return tiny_llama(tmp_path_factory.mktemp("models") / "tiny-llama")


def tiny_llama_with(path, chat_template, special_tokens):
    from sage_llm_worker.testing import tiny_llama

    return tiny_llama(path / "tools", chat_template=chat_template, special_tokens=special_tokens)


def make(path, **options):
    from sage_llm_worker.engines.transformers import TransformersEngine

    return TransformersEngine(path, threads=1, dtype="float32", **options)


class TestPromises(EngineSuite):
    @pytest.fixture(autouse=True)
    def _llama(self, llama):
        self.path = llama

    def make_engine(self, max_sequences=None):
        return make(self.path, max_sequences=max_sequences)


@pytest.fixture
async def engine(llama):
    engine = make(llama)
    await engine.start()
    yield engine
    await engine.stop()


def request(text="Tell me about queues.", resume=None, **sampling):
    prompt = ChatPrompt(messages=[ChatMessage(role="user", content=text)])
    return Generate(
        model="m", prompt=prompt, sampling=Sampling(**({"max_tokens": 24} | sampling)), resume=resume
    )


async def test_text_of_every_answer_is_the_text_of_its_ids(engine, llama):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(llama)
    for seed in range(12):
        answer = await collect(engine, request(seed=seed, max_tokens=60))
        text = tokenizer.decode(answer.token_ids, skip_special_tokens=True).replace("\ufffd", "")
        assert answer.text == text


async def test_seeded_answer_resumes_with_the_same_draws(engine):
    whole = await collect(engine, request(seed=3, temperature=1.2, top_p=0.9))
    resume = whole.first(9)
    rest = await collect(engine, request(seed=3, temperature=1.2, top_p=0.9, resume=resume))
    assert resume.text + rest.text == whole.text


async def test_text_without_ids_is_tokenized_to_resume(engine):
    whole = await collect(engine, request(temperature=0))
    ascii_pieces = next(n for n in range(4, 20) if whole.first(n).text.isascii())
    resume = Resume(text=whole.first(ascii_pieces).text)
    rest = await collect(engine, request(temperature=0, resume=resume))
    assert rest.completed.usage.completion_tokens == 24
    assert rest.pieces


async def test_requests_with_different_sampling_share_a_batch(engine):
    settings = [
        {"temperature": 0},
        {"seed": 1},
        {"seed": 2, "top_p": 0.5},
        {"frequency_penalty": 1.5, "seed": 4},
    ]
    alone = [await collect(engine, request(**options)) for options in settings]
    together = await asyncio.gather(
        *(collect(engine, request(**options), f"r{number}") for number, options in enumerate(settings))
    )
    assert [one.text for one in alone] == [one.text for one in together]
    assert len({one.text for one in alone}) == len(settings)


async def test_frequency_penalty_keeps_greedy_from_repeating(engine):
    plain = await collect(engine, request(temperature=0, max_tokens=150))
    penalised = await collect(engine, request(temperature=0, frequency_penalty=2.0, max_tokens=150))
    assert len(set(penalised.token_ids)) > len(set(plain.token_ids))


async def test_sequences_join_and_leave_in_any_order(engine):
    lengths = [3, 40, 11, 80, 1, 25, 60, 7]
    alone = [await collect(engine, request("x" * n, temperature=0, max_tokens=n)) for n in lengths]

    async def later(number, length):
        await asyncio.sleep(0.004 * number)
        return await collect(engine, request("x" * length, temperature=0, max_tokens=length), f"r{number}")

    together = await asyncio.gather(*(later(number, length) for number, length in enumerate(lengths)))
    assert [one.token_ids for one in alone] == [one.token_ids for one in together]


async def test_long_prompts_are_prefilled_in_chunks_beside_short_ones(llama, tmp_path):
    from sage_llm_worker.testing import tiny_llama

    path = tiny_llama(tmp_path / "long", max_context=4096)
    engine = make(path)
    await engine.start()
    try:
        ids = [10 + n % 300 for n in range(3000)]
        long = Generate(
            model="m",
            prompt=TokenPrompt(token_ids=ids),
            sampling=Sampling(max_tokens=10, temperature=0),
        )
        alone = await collect(engine, long)
        short = [collect(engine, request(temperature=0), f"s{number}") for number in range(4)]
        together, *_ = await asyncio.gather(collect(engine, long), *short)
        assert alone.token_ids == together.token_ids
        assert alone.completed.usage.prompt_tokens == 3000
    finally:
        await engine.stop()


async def test_prompts_as_text_and_as_ids_are_the_same(engine, llama):
    from transformers import AutoTokenizer

    ids = AutoTokenizer.from_pretrained(llama)("The scheduler")["input_ids"]
    sampling = Sampling(max_tokens=8, temperature=0)
    texts = [
        (await collect(engine, Generate(model="m", prompt=prompt, sampling=sampling))).text
        for prompt in (TextPrompt(text="The scheduler"), TokenPrompt(token_ids=ids))
    ]
    assert texts[0] == texts[1]


async def test_ids_outside_the_vocabulary_are_refused(engine):
    with pytest.raises(BadRequest, match="vocabulary"):
        await collect(engine, Generate(model="m", prompt=TokenPrompt(token_ids=[5, 100_000])))


async def test_parameters_out_of_range_are_refused_by_name(engine):
    with pytest.raises(BadRequest) as refused:
        await collect(engine, request(temperature=-1.0))
    assert refused.value.param == "temperature"


async def test_a_model_without_chat_template_gets_a_plain_transcript(tmp_path):
    from sage_llm_worker.testing import tiny_llama

    engine = make(tiny_llama(tmp_path / "base", chat_template=None))
    await engine.start()
    try:
        chat = await collect(engine, request("hello", temperature=0))
        text = Generate(
            model="m",
            prompt=TextPrompt(text="User: hello\n\nAssistant:"),
            sampling=Sampling(max_tokens=24, temperature=0),
        )
        assert chat.text == (await collect(engine, text)).text
    finally:
        await engine.stop()


async def test_a_failing_step_fails_its_requests_and_the_next_one_succeeds(engine, monkeypatch):
    from sage_core import EngineError

    batch = engine._thread._batch
    events = engine.generate("a", request(max_tokens=100))
    await anext(events)
    real = type(batch)._forward

    def broken(self, *arguments):
        monkeypatch.setattr(type(batch), "_forward", real)
        raise RuntimeError("out of memory")

    monkeypatch.setattr(type(batch), "_forward", broken)
    with pytest.raises(EngineError, match="out of memory"):
        async for _ in events:
            pass
    assert (await collect(engine, request())).completed is not None
    assert engine.stats().num_running == 0


async def test_a_folder_that_is_no_model_is_a_configuration_error(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    engine = make(tmp_path)
    with pytest.raises(ConfigurationError, match=str(tmp_path)):
        await engine.start()
    await engine.stop()


async def test_a_context_the_model_does_not_have_is_a_configuration_error(llama):
    engine = make(llama, max_context=100_000)
    with pytest.raises(ConfigurationError, match="max_context"):
        await engine.start()
    await engine.stop()


async def test_markers_that_are_special_tokens_stay_in_the_text_where_they_are_needed(tmp_path):
    from sage_llm_worker.testing import TOOL_TEMPLATE

    markers = ("<tool_call>", "</tool_call>", "<think>", "</think>")
    engine = make(tiny_llama_with(tmp_path, TOOL_TEMPLATE, markers))
    await engine.start()
    prompt = ChatPrompt(messages=[ChatMessage(role="user", content="x")], tools=[ToolDefinition(name="f")])
    texts = {}
    for marker in markers:
        (token_id,) = (await engine.tokenize(Tokenize(model="m", prompt=TextPrompt(text=marker)))).token_ids[
            1:
        ]
        forced = Sampling(max_tokens=2, logit_bias=[TokenBias(token_id=token_id, bias=100.0)])
        with_tools = await collect(engine, Generate(model="m", prompt=prompt, sampling=forced))
        without = await collect(
            engine, Generate(model="m", prompt=ChatPrompt(messages=prompt.messages), sampling=forced)
        )
        texts[marker] = (with_tools.text, without.text)
    formats = engine.formats
    await engine.stop()
    assert (formats.tools, formats.reasoning) == ("hermes", "think")
    assert texts == {
        "<tool_call>": ("<tool_call>" * 2, ""),
        "</tool_call>": ("</tool_call>" * 2, ""),
        "<think>": ("<think>" * 2, "<think>" * 2),
        "</think>": ("</think>" * 2, "</think>" * 2),
    }


async def test_text_says_where_reasoning_begins_when_a_request_decides_it(tmp_path):
    from sage_llm_worker.testing import TOOL_TEMPLATE

    engine = make(tiny_llama_with(tmp_path, TOOL_TEMPLATE, ()))
    await engine.start()

    def asked(arguments="", **options):
        messages = [ChatMessage(role="user", content="x")]
        prompt = ChatPrompt(messages=messages, template_arguments=arguments)
        sampling = Sampling(max_tokens=12, temperature=0)
        return Generate(model="m", prompt=prompt, sampling=sampling, **options)

    opened = await collect(engine, asked('{"thinks": true}'))
    rest = await collect(engine, asked('{"thinks": true}', resume=opened.first(3)))
    by_text = Resume(text=opened.first(3).text, num_tokens=opened.first(3).num_tokens)
    usual = await collect(engine, asked())
    structured = await collect(engine, asked('{"thinks": true}', structure=OneOf(options=["yes"])))
    resumed = await collect(engine, asked('{"thinks": true}', resume=by_text))
    await engine.stop()
    assert opened.pieces[0] == Tokens(text="<think>", num_tokens=0)
    assert opened.first(3).text + rest.text == opened.text
    assert not usual.text.startswith("<think>")
    assert structured.text == "yes"
    assert opened.completed.usage.completion_tokens == 12
    assert resumed.completed.usage.prompt_tokens == opened.completed.usage.prompt_tokens


async def test_greedy_tokens_have_the_log_probabilities_of_one_pass_over_the_whole_text(engine, llama):
    import torch
    from transformers import AutoModelForCausalLM

    prompt = TokenPrompt(token_ids=[0, *range(30, 330)])
    sampling = Sampling(max_tokens=8, temperature=0, logprobs=2)
    answer = await collect(engine, Generate(model="m", prompt=prompt, sampling=sampling, echo=True))
    ids = [*prompt.token_ids, *(entry.chosen.token_id for entry in answer.logprobs[301:])]
    model = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
    with torch.inference_mode():
        expected = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    for place, entry in enumerate(answer.logprobs[1:], start=1):
        assert entry.chosen.token_id == ids[place]
        assert entry.chosen.logprob == pytest.approx(float(expected[place - 1, ids[place]]), abs=1e-3)
        best = expected[place - 1].topk(2)
        assert [found.token_id for found in entry.top] == best.indices.tolist()


async def test_scored_prompts_share_a_batch_with_others(engine):
    def asked(number, logprobs):
        prompt = TextPrompt(text="The queue knows. " * (3 + 5 * number))
        sampling = Sampling(max_tokens=6, temperature=0, logprobs=logprobs)
        return Generate(model="m", prompt=prompt, sampling=sampling, echo=logprobs is not None)

    requests = [asked(number, number % 2 or None) for number in range(6)]
    alone = [await collect(engine, request) for request in requests]
    together = await asyncio.gather(
        *(collect(engine, request, f"r{number}") for number, request in enumerate(requests))
    )
    for one, other in zip(alone, together, strict=True):
        assert other.text == one.text
        assert len(other.logprobs) == len(one.logprobs)
        for entry, same in zip(other.logprobs, one.logprobs, strict=True):
            assert entry.chosen.logprob == pytest.approx(same.chosen.logprob, abs=1e-3)


@pytest.mark.parametrize(
    ("sampling", "num_different"),
    [({"top_k": 1}, 1), ({"min_p": 1.0}, 1), ({"top_p": 0.0}, 1), ({"top_k": 3}, 3), ({}, 20)],
)
async def test_few_candidates_mean_few_first_tokens(engine, sampling, num_different):
    firsts = set()
    for seed in range(60):
        answer = await collect(engine, request(seed=seed, max_tokens=1, temperature=1.5, **sampling))
        firsts.add(tuple(answer.token_ids))
    assert len(firsts) <= num_different if sampling else len(firsts) > num_different


async def test_a_repetition_penalty_makes_repetition_rarer(engine):
    def repeated(answer):
        return len(answer.token_ids) - len(set(answer.token_ids))

    usual = await collect(engine, request(temperature=0, max_tokens=80, ignore_eos=True))
    punished = await collect(
        engine, request(temperature=0, max_tokens=80, ignore_eos=True, repetition_penalty=5.0)
    )
    assert repeated(punished) < repeated(usual)
