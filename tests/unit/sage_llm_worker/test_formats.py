"""How a model writes is told from its chat template, unless the settings say it."""

import pytest

from sage_llm_worker.formats import detect_formats, is_reasoning_open, markers_of
from sage_worker.engine import TextFormats

# The telling parts of published templates.
HERMES = "{%- if tools %}For each function call, return a json object within <tool_call></tool_call> XML tags"
QWEN_CODER = "<tool_call>\n<function=example_function_name>\n<parameter=example_parameter_1>"
MISTRAL = "{{- '[TOOL_CALLS] [' }}{%- for tool_call in message.tool_calls %}"
LLAMA = "{{- '<|start_header_id|>ipython<|end_header_id|>' }} \"parameters\": dictionary of argument name"
LLAMA_4 = "<|python_start|>[func_name1(params_name1=params_value1)]<|python_end|>"
THINKS = "{%- if '</think>' in content %}{%- set content = content.split('</think>')[-1] %}"


def detected(template, prompt="", **options):
    formats = detect_formats(template, lambda: prompt, **options)
    return formats.tools, formats.reasoning


@pytest.mark.parametrize(
    ("template", "tools"),
    [
        (HERMES, "hermes"),
        (QWEN_CODER, ""),
        (MISTRAL, "mistral"),
        (LLAMA, "llama3_json"),
        (LLAMA_4, "pythonic"),
        ("{{ messages }}", ""),
        (None, ""),
        ({"default": "{{ messages }}", "tool_use": HERMES}, "hermes"),
    ],
)
def test_tool_calls_are_written_as_the_template_shows_them(template, tools):
    assert detected(template) == (tools, "")


@pytest.mark.parametrize(
    ("prompt", "reasoning"),
    [
        ("<|assistant|>", "think"),
        ("<|assistant|><think>", "think_open"),
        ("<|assistant|><think>\n", "think_open"),
        ("<|assistant|><think>\n\n</think>\n\n", "think"),
    ],
)
def test_reasoning_begins_where_the_rendered_prompt_leaves_it(prompt, reasoning):
    assert detected(HERMES + THINKS, prompt) == ("hermes", reasoning)
    assert is_reasoning_open(prompt) == (reasoning == "think_open")


def test_settings_win_over_the_template_and_none_means_none():
    assert detected(HERMES + THINKS, tools="pythonic", reasoning="none") == ("pythonic", "")
    assert detected(None, tools="none", reasoning="think_open") == ("", "think_open")


def test_a_template_without_reasoning_is_not_rendered():
    def fail():
        raise AssertionError

    assert detect_formats(HERMES, fail).reasoning == ""


def test_markers_of_tool_calls_are_kept_only_for_requests_with_tools():
    formats = TextFormats(tools="mistral", reasoning="think")
    assert markers_of(formats, has_tools=False) == {"<think>", "</think>"}
    assert markers_of(formats, has_tools=True) == {
        "[TOOL_CALLS]",
        "[ARGS]",
        "[CALL_ID]",
        "<think>",
        "</think>",
    }
    assert markers_of(TextFormats(), has_tools=True) == frozenset()
