"""Every mistake in a pipeline file gets one line with its place, what was found and what is accepted."""

from __future__ import annotations

import textwrap

import pytest

from sage_pipeline import PipelineError, parse_pipeline
from sage_pipeline.build import build
from sage_pipeline.yaml_source import MAX_YAML_BYTES


def problems_of(text: str | bytes) -> list[str]:
    if isinstance(text, str):
        text = textwrap.dedent(text)
    with pytest.raises(PipelineError) as caught:
        parse_pipeline(text, "p.yaml")
    return caught.value.message.split("\n")


def with_nodes(nodes: str) -> str:
    return "name: x\nnodes:\n" + textwrap.indent(textwrap.dedent(nodes).strip("\n"), "  ") + "\n"


def test_unknown_node_type_names_place_and_nearest() -> None:
    assert problems_of(with_nodes("- type: embde")) == [
        "p.yaml:3:11: unknown node type 'embde'; expected one of chat, documents, split, embed, index, retrieve, "
        "rerank, prompt, llm; did you mean 'embed'?"
    ]


def test_unknown_keys_are_refused_by_name_on_every_level() -> None:
    found = problems_of(
        """
        name: x
        nods: []
        parameters:
          c: {default: d, defualt: e}
        nodes:
          - type: chat
          - type: llm
            modle: auto
            prompt: ${c}
        """
    )
    assert found == [
        "p.yaml:3:1: unknown key 'nods' in a pipeline; expected one of name, description, parameters, nodes, output; "
        "did you mean 'nodes'?",
        "p.yaml:5:19: unknown key 'defualt' in parameter 'c'; expected one of default, description; "
        "did you mean 'default'?",
        "p.yaml:9:5: unknown key 'modle' in node 'llm' (llm); expected one of id, type, inputs, model, max_tokens, "
        "temperature, top_p, seed, stop; did you mean 'model'?",
        "p.yaml:10:5: unknown key 'prompt' in node 'llm' (llm); expected one of id, type, inputs, model, max_tokens, "
        "temperature, top_p, seed, stop",
    ]


def test_all_problems_of_a_file_come_at_once_in_file_order() -> None:
    found = problems_of(
        with_nodes(
            """
            - type: chat
            - type: retrieve
              top_k: 0
            - type: nope
            """
        )
    )
    assert [line.split(" ")[0] for line in found] == ["p.yaml:4:5:", "p.yaml:5:12:", "p.yaml:6:11:"]
    assert "option 'collection' is missing" in found[0]
    assert "option 'top_k': found 0; expected `int` >= 1" in found[1]


def test_wrong_type_on_an_edge_names_node_port_found_and_accepted() -> None:
    assert problems_of(
        with_nodes(
            """
            - type: chat
            - type: llm
              id: rewrite
            - type: prompt
              inputs: {question: chat, context: rewrite}
            - type: llm
            """
        )
    ) == [
        "p.yaml:7:39: node 'prompt' (prompt) port 'context': found Answer from 'rewrite' (llm); accepted: Hits",
    ]


def test_missing_input_says_what_is_accepted_and_what_was_found_before() -> None:
    assert problems_of(with_nodes("- type: documents\n- type: llm")) == [
        "p.yaml:4:5: node 'llm' (llm) has nothing at port 'prompt'; accepted: Prompt, Messages; "
        "found before it: documents (Documents)"
    ]


def test_explicit_inputs_must_name_every_required_port() -> None:
    found = problems_of(
        with_nodes("- type: chat\n- type: embed\n- {type: retrieve, collection: d, inputs: {vector: embed}}")
    )
    assert found == [
        "p.yaml:5:37: node 'retrieve' (retrieve) has nothing at port 'query'; accepted: Messages, Answer "
        "(a node with 'inputs' names all of its ports)"
    ]


def test_unknown_port_and_unknown_node_get_the_nearest_name() -> None:
    found = problems_of(
        with_nodes(
            "- type: chat\n- {type: llm, inputs: {promt: chat}}\n- {type: llm, id: b, inputs: {prompt: cat}}"
        )
    )
    assert found == [
        "p.yaml:4:17: node 'llm' (llm) has nothing at port 'prompt'; accepted: Prompt, Messages "
        "(a node with 'inputs' names all of its ports)",
        "p.yaml:4:26: node 'llm' (llm) has no port 'promt'; expected one of prompt; did you mean 'prompt'?",
        "p.yaml:5:41: node 'b' (llm) port 'prompt': unknown node 'cat'; expected one of chat, llm, b; "
        "did you mean 'chat'?",
    ]


def test_a_cycle_is_spelled_out_in_the_direction_of_the_data() -> None:
    found = problems_of(
        with_nodes(
            """
            - type: chat
            - {type: llm, id: a, inputs: {prompt: c}}
            - {type: prompt, id: b, inputs: {question: a}}
            - {type: prompt, id: c, inputs: {question: a, extra: a}, template: "{{extra}}"}
            """
        )
    )
    assert found == ["p.yaml:4:41: node 'a' port 'prompt': nodes form a cycle: a -> c -> a"]


def test_a_node_that_reads_itself_is_a_cycle() -> None:
    found = problems_of(with_nodes("- type: chat\n- {type: llm, inputs: {prompt: llm}}"))
    assert found == ["p.yaml:4:34: node 'llm' port 'prompt': nodes form a cycle: llm -> llm"]


def test_duplicate_ids_name_the_first_line_and_the_cure() -> None:
    assert problems_of(with_nodes("- type: chat\n- type: llm\n- type: llm")) == [
        "p.yaml:5:5: two nodes have the id 'llm', first in line 4; give one of them an 'id'"
    ]


def test_an_unused_node_is_named() -> None:
    assert problems_of(with_nodes("- type: chat\n- type: embed\n- type: llm")) == [
        "p.yaml:4:5: node 'embed' is not used: no edge leads from it to the output 'llm'"
    ]


def test_a_second_source_is_refused() -> None:
    found = problems_of(with_nodes("- type: documents\n- type: chat\n- type: llm"))
    assert (
        "p.yaml:4:5: node 'chat' (chat) is a second source, after 'documents'; a run has one input" in found
    )


def test_an_output_nobody_can_be_given_is_refused() -> None:
    assert problems_of(with_nodes("- type: chat\n- type: prompt")) == [
        "p.yaml:4:5: output 'prompt' (prompt) yields Prompt; accepted as the output of a pipeline: Answer, Hits, "
        "Vector, Chunks, IndexReport"
    ]
    assert problems_of(with_nodes("- type: chat\n- type: llm") + "output: lm\n") == [
        "p.yaml:5:9: output 'lm' is not a node; expected one of chat, llm; did you mean 'llm'?"
    ]


def test_dense_retrieval_without_a_vector_says_what_to_do() -> None:
    assert problems_of(with_nodes("- type: chat\n- {type: retrieve, collection: docs}")) == [
        "p.yaml:4:5: node 'retrieve' (retrieve): nothing at port 'vector', which mode hybrid needs; accepted: "
        "Vector from an embed node, or set mode: sparse"
    ]


def test_overlap_of_over_half_the_passage_is_refused() -> None:
    assert problems_of(
        with_nodes("- type: documents\n- {type: split, chunk_chars: 200, overlap_chars: 200}")
    ) == [
        "p.yaml:4:52: node 'split' (split): overlap_chars is 200; expected at most half of chunk_chars, which is 200"
    ]


def test_templates_hold_names_only() -> None:
    found = problems_of(
        with_nodes(
            """
            - type: chat
            - type: prompt
              instructions: "{{ question.__class__ }}"
              template: "a {{context}} {{qestion}}"
            - type: llm
            """
        )
    )
    assert found == [
        "p.yaml:5:19: node 'prompt': instructions: slot 'question.__class__' is not a name; slots hold a name and "
        "nothing else (line 1, column 1 of the template)",
        "p.yaml:6:15: node 'prompt': template: unknown slot 'context' (passages are placed by the node itself); "
        "expected one of question",
        "p.yaml:6:15: node 'prompt': template: unknown slot 'qestion'; expected one of question; "
        "did you mean 'question'?",
    ]


def test_an_extra_port_must_be_used_in_a_template() -> None:
    found = problems_of(
        with_nodes("- type: chat\n- {type: prompt, inputs: {question: chat, contxt: chat}}\n- type: llm")
    )
    assert found == [
        "p.yaml:4:45: node 'prompt': port 'contxt' is used in no template; expected {{contxt}} in one, or one of "
        "question, context; did you mean 'context'?"
    ]


def test_parameters_must_be_declared_used_and_fit_their_option() -> None:
    found = problems_of(
        """
        name: x
        parameters:
          k: {default: many}
        nodes:
          - type: chat
          - type: embed
          - {type: retrieve, collection: "${colection}", top_k: "${k}"}
        """
    )
    assert found == [
        "p.yaml:8:34: node 'retrieve': option 'collection': unknown parameter 'colection'; declared: k",
        "p.yaml:8:57: node 'retrieve': option 'top_k' = parameter 'k': found 'many'; expected `int`, got `str`",
    ]
    assert problems_of("name: x\nparameters: {k: {default: 1}}\nnodes: [{type: chat}, {type: llm}]\n") == [
        "p.yaml:2:14: parameter 'k' is not used"
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "p.yaml:1:1: the file is empty; expected a pipeline"),
        (
            "- a",
            "p.yaml:1:1: found ['a']; expected a mapping with name, description, parameters, nodes, output",
        ),
        (
            "nodes: [{type: chat}, {type: llm}]",
            "p.yaml:1:1: 'name' is missing; expected 1 to 63 of a-z, 0-9 and '-'",
        ),
        (
            "name: Bad Name\nnodes: [{type: chat}, {type: llm}]",
            "p.yaml:1:7: 'name' is 'Bad Name'; expected 1 to 63",
        ),
        ("name: x", "p.yaml:1:1: 'nodes' is missing; expected a list of nodes"),
        ("name: x\nnodes: {}", "p.yaml:2:8: 'nodes' is {}; expected a list with at least one node"),
        ("name: x\nnodes: [chat]", "p.yaml:2:9: found 'chat'; expected a node, a mapping with 'type'"),
        ("name: x\nname: y\nnodes: []", "p.yaml:2:1: key 'name' is given twice, first in line 1"),
        ("name: x\n? [a]\n: b", "p.yaml:2:3: a key that is not text; expected a name"),
        ("name: 2024-01-01\nnodes: []", "p.yaml:1:7: found a timestamp; put it in quotes to make it text"),
        (
            "name: x\nnodes: [{type: llm, temperature: .nan}]",
            "p.yaml:2:34: found nan; expected a finite number",
        ),
        ("a: &x [1]\nb: *x", "p.yaml:1:4: anchor '&x' is not allowed"),
        ("b: *x", "p.yaml:1:4: aliases are not allowed; write the value out"),
        (
            "a: !!python/object/apply:os.system ['id']",
            "p.yaml:1:4: tag 'tag:yaml.org,2002:python/object/apply:os.system'",
        ),
        ("a: 1\n---\nb: 2", "p.yaml:2:1: a second document; expected one pipeline per file"),
        ("<<: {a: 1}", "p.yaml:1:1: unknown key '<<' in a pipeline"),
        ("a: [1, 2", "p.yaml:1:9: not YAML: while parsing a flow sequence"),
        ("a:\n\t- b", "p.yaml:2:1: not YAML: while scanning for the next token found character '\\t'"),
        ("a: \x07", "p.yaml:1:1: not YAML: unacceptable character #x0007"),
        (b"name: \xff\xfe", "p.yaml:1:7: not UTF-8"),
        ("[" * 500, "p.yaml:1:9: nested deeper than 8 levels"),
        ("[" + "1," * 5000 + "]", "more than 4096 values in one file"),
        (
            "a" * (MAX_YAML_BYTES + 1),
            f"the file has {MAX_YAML_BYTES + 1} bytes; at most {MAX_YAML_BYTES} are allowed",
        ),
    ],
)
def test_malformed_yaml_gets_one_line_with_its_place(text: str | bytes, expected: str) -> None:
    assert any(expected in line for line in problems_of(text)), problems_of(text)


def test_too_many_nodes_are_refused() -> None:
    nodes = "- type: chat\n" + "".join(f"- {{type: llm, id: n{number}}}\n" for number in range(64))
    assert problems_of(with_nodes(nodes)) == ["p.yaml:3:3: 65 nodes; at most 64 are allowed"]


def test_a_path_that_is_too_deep_is_refused() -> None:
    nodes = "- type: chat\n"
    before = "chat"
    for number in range(17):
        nodes += f"- {{type: prompt, id: p{number}, inputs: {{question: {before}}}}}\n- {{type: llm, id: n{number}}}\n"
        before = f"n{number}"
    assert problems_of(with_nodes(nodes)) == [
        "p.yaml:3:3: the longest path has 35 nodes; at most 32 are allowed"
    ]


def test_an_alias_bomb_costs_nothing() -> None:
    bomb = "a: &a [x,x,x]\n" + "".join(
        f"{chr(98 + level)}: &{chr(98 + level)} [{','.join(['*' + chr(97 + level)] * 9)}]\n"
        for level in range(12)
    )
    assert problems_of(bomb) == ["p.yaml:1:4: anchor '&a' is not allowed"]


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ('name: x\ndescription: "\\ud800"\nnodes:\n  - type: chat\n', "p.yaml:2:14: "),
        ('name: x\n"\\udc00": 1\nnodes:\n  - type: chat\n', "p.yaml:2:1: "),
        ('name: x\nnodes:\n  - type: llm\n    stop: [ok, "\\ud800"]\n', "p.yaml:4:16: "),
        ('name: x\nparameters:\n  "a\\ud800": {default: b}\nnodes: []\n', "p.yaml:3:3: "),
    ],
)
def test_half_a_character_is_refused_where_it_stands_in_one_printable_line(text: str, place: str) -> None:
    (line,) = problems_of(text)
    assert line.startswith(place)
    assert "surrogate" in line
    line.encode()


@pytest.mark.parametrize("escape", ["\\0", "\\e", "\\x7f", "\\n"])
def test_control_characters_in_keys_are_refused(escape: str) -> None:
    (line,) = problems_of(f'name: x\n"a{escape}b": 1\nnodes:\n  - type: chat\n')
    assert line.startswith("p.yaml:2:1: ")
    assert "control character" in line
    assert line.isprintable()


def test_half_a_character_from_python_is_refused_too() -> None:
    with pytest.raises(PipelineError, match="surrogate"):
        build({"name": "x", "description": "\ud800", "nodes": [{"type": "chat"}]})
