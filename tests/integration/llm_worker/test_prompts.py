"""What a chat template is given, and what of a prompt is refused."""

import json

import pytest

from sage_core import BadRequest
from sage_wire.messages import (
    ChatMessage,
    ChatPrompt,
    Generate,
    TextPrompt,
    Tokenize,
    TokenPrompt,
    ToolCall,
    ToolDefinition,
)

pytest.importorskip("transformers")
pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    from transformers import AutoTokenizer

    from sage_llm_worker.testing import TOOL_TEMPLATE, tiny_llama

    return AutoTokenizer.from_pretrained(
        tiny_llama(tmp_path_factory.mktemp("models") / "tools", chat_template=TOOL_TEMPLATE)
    )


def reader(tokenizer, template=None, **options):
    import copy

    from sage_llm_worker.prompts import PromptReader

    own = copy.copy(tokenizer)
    own.chat_template = template or tokenizer.chat_template
    return PromptReader(own, vocab_size=400, **options)


def read(reader, **prompt):
    """Return the text of a chat as the model reads it."""
    ids = reader.read(Generate(model="m", prompt=ChatPrompt(**prompt))).ids
    return reader.text_of(ids)


USER = ChatMessage(role="user", content="Hi")


def test_tools_are_function_dicts_with_their_schema_as_an_object(tokenizer):
    tools = [
        ToolDefinition(name="find", description="Finds.", parameters='{"type": "object", "required": ["q"]}'),
        ToolDefinition(name="now"),
    ]
    lines = read(reader(tokenizer), messages=[USER], tools=tools).removeprefix("<|system|>").splitlines()
    assert [json.loads(line) for line in lines[:2]] == [
        {
            "type": "function",
            "function": {
                "name": "find",
                "description": "Finds.",
                "parameters": {"type": "object", "required": ["q"]},
            },
        },
        {
            "type": "function",
            "function": {
                "name": "now",
                "description": "",
                "parameters": {"type": "object", "properties": {}},
            },
        },
    ]


def test_turns_keep_their_calls_reasoning_and_the_call_they_answer(tokenizer):
    calls = [
        ToolCall(id="c1", name="find", arguments='{"q": 1}'),
        ToolCall(id="c2", name="f", arguments="{oops"),
    ]
    text = read(
        reader(tokenizer),
        messages=[
            ChatMessage(role="developer", content="Be brief."),
            USER,
            ChatMessage(role="assistant", content="", tool_calls=calls, reasoning="Hm."),
            ChatMessage(role="tool", content="2", tool_call_id="c1"),
        ],
    )
    assert text == (
        "<|system|>Be brief.<|end|><|user|>Hi<|end|>"
        '<|assistant|><think>Hm.</think><tool_call>{"name": "find", "arguments": {"q": 1}}</tool_call>'
        '<tool_call>{"name": "f", "arguments": "{oops"}</tool_call><|end|>'
        "<|tool|>2 for c1<|end|><|assistant|>"
    )


def test_an_open_last_message_is_gone_on_with(tokenizer):
    messages = [USER, ChatMessage(role="assistant", content="Once upon")]
    assert read(reader(tokenizer), messages=messages, continues_last=True).endswith("<|assistant|>Once upon")


def test_template_arguments_reach_the_template_and_nothing_else(tokenizer):
    own = reader(tokenizer, "{{ colour }}{% for m in messages %}{{ m.content }}{% endfor %}")
    assert read(own, messages=[USER], template_arguments='{"colour": "red "}') == "red Hi"
    for name in ("messages", "tools", "chat_template", "tokenize", "add_generation_prompt"):
        with pytest.raises(BadRequest, match=name) as refused:
            read(own, messages=[USER], template_arguments=json.dumps({name: "x"}))
        assert refused.value.param == "chat_template_kwargs"
    for text in ("[1]", "{"):
        with pytest.raises(BadRequest, match="template arguments"):
            read(own, messages=[USER], template_arguments=text)


def test_mistral_gets_ids_of_nine_letters_and_digits(tokenizer):
    template = "[TOOL_CALLS]{% for m in messages %}{{ m.tool_call_id }} {% endfor %}"
    own = reader(tokenizer, template)
    messages = [
        ChatMessage(role="tool", content="", tool_call_id=call_id) for call_id in ("call_0123456789ab", "7")
    ]
    assert own.formats.tools == "mistral"
    assert read(own, messages=messages).split("]")[1].split() == ["3456789ab", "000000007"]


@pytest.mark.parametrize(
    ("prompt", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [USER], "tools": [ToolDefinition(name="f", parameters="{")]}, "tools"),
        ({"messages": [ChatMessage(role="robot", content="x")]}, "messages"),
    ],
)
def test_what_a_template_cannot_take_is_refused_by_name(tokenizer, prompt, param):
    template = tokenizer.chat_template + (
        "{% if messages[0].role == 'robot' %}{{ raise_exception('no robots') }}{% endif %}"
    )
    with pytest.raises(BadRequest) as refused:
        read(reader(tokenizer, template), **prompt)
    assert refused.value.param == param


def test_a_model_without_tools_in_its_template_refuses_them_unless_told_a_format(tokenizer):
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    tools = [ToolDefinition(name="f")]
    with pytest.raises(BadRequest, match="takes no tools") as refused:
        read(reader(tokenizer, template), messages=[USER], tools=tools)
    assert refused.value.param == "tools"
    assert read(reader(tokenizer, template, tool_format="pythonic"), messages=[USER], tools=tools) == "Hi"


def test_special_tokens_are_added_to_texts_and_not_to_what_a_template_wrote(tokenizer):
    own = reader(tokenizer)

    def ids(prompt, adds=None):
        return own.tokenize(Tokenize(model="m", prompt=prompt, adds_special_tokens=adds)).token_ids

    text, chat = TextPrompt(text="Hi"), ChatPrompt(messages=[USER])
    begin = tokenizer.bos_token_id
    assert ids(text) == ids(text, True) == [begin, *ids(text, False)]
    assert ids(chat) == ids(chat, False)
    assert ids(chat, True) == [begin, *ids(chat)]


def test_the_echo_of_token_ids_keeps_special_tokens_and_ids_beyond_the_vocabulary_are_named(tokenizer):
    own = reader(tokenizer)
    begin = tokenizer.bos_token_id
    request = Generate(model="m", prompt=TokenPrompt(token_ids=[begin, begin]))
    assert own.echoed_text(request, own.read(request).ids) == tokenizer.bos_token * 2
    with pytest.raises(BadRequest, match="token id 999999 is out of vocabulary") as refused:
        own.read(Generate(model="m", prompt=TokenPrompt(token_ids=[999_999])))
    assert refused.value.param == "prompt"
