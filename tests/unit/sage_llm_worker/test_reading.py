"""How a reader sees a prompt."""

from sage_llm_worker.reading import read_messages, split_sentences
from sage_wire.messages import ChatMessage

CONTEXT = """<context>
[1] Installing
Packages are managed with apt.
See [2] for more.

[2] docs/cron.txt
Cron runs jobs.
</context>"""


def chat(*turns):
    return [ChatMessage(role=role, content=content) for role, content in turns]


def test_passages_carry_the_numbers_and_titles_of_the_prompt():
    reading = read_messages(chat(("system", "Answer."), ("user", CONTEXT), ("user", "How?")))
    assert reading.question == "How?"
    assert [(passage.number, passage.title) for passage in reading.passages] == [
        (1, "Installing"),
        (2, "docs/cron.txt"),
    ]
    assert "See [2] for more." in reading.passages[0].text


def test_the_question_may_share_a_message_with_the_context():
    reading = read_messages(chat(("user", f"Read this.\n{CONTEXT}\nWhat runs jobs?")))
    assert "What runs jobs?" in reading.question
    assert "Cron runs" not in reading.question


def test_a_bracketed_number_inside_a_passage_opens_no_block():
    text = "<context>\n[1] a\nfirst\n\n[7] not a block\nsecond\n\n[2] b\nthird\n</context>"
    reading = read_messages(chat(("user", text), ("user", "q")))
    assert [passage.number for passage in reading.passages] == [1, 2]
    assert "[7] not a block" in reading.passages[0].text


def test_windows_line_ends_make_no_difference():
    reading = read_messages(chat(("user", CONTEXT.replace("\n", "\r\n")), ("user", "q")))
    assert len(reading.passages) == 2


def test_earlier_turns_are_the_context_of_a_conversation_but_instructions_are_not():
    reading = read_messages(
        chat(
            ("system", "You are terse."),
            ("user", "I live in Oslo."),
            ("assistant", "Noted."),
            ("user", "Where?"),
        )
    )
    assert [passage.text for passage in reading.passages] == ["I live in Oslo.", "Noted."]
    assert all(passage.number is None for passage in reading.passages)


def test_a_pasted_text_is_the_context_of_the_question_beside_it():
    pasted = "The first release was in May. " * 10
    for message in (f"{pasted}\n\nWhen was the release?", f"When was the release?\n\n{pasted}"):
        reading = read_messages(chat(("user", message)))
        assert reading.question == "When was the release?"
        assert reading.passages[0].text.startswith("The first release")


def test_a_question_alone_has_no_context():
    reading = read_messages(chat(("user", "Hello, who are you?")))
    assert reading.question == "Hello, who are you?"
    assert reading.sentences() == []


def test_no_user_message_means_no_question():
    assert read_messages(chat(("system", "Be brief."))).question == ""


def test_sentences_survive_abbreviations_wrapped_lines_and_lists():
    text = (
        "Use e.g. apt or dpkg. Version 3.5 is\nthe newest one.  It works!\n"
        "- first item\n- second item (cf. Fig. 2) ends here.\n\nNew paragraph? Yes."
    )
    assert split_sentences(text) == [
        "Use e.g. apt or dpkg.",
        "Version 3.5 is the newest one.",
        "It works!",
        "first item",
        "second item (cf. Fig. 2) ends here.",
        "New paragraph?",
        "Yes.",
    ]


def test_sentences_without_letters_are_left_out_and_endless_ones_cut():
    assert split_sentences("-----\n***\n") == []
    assert split_sentences("# A heading\nIt says something.\n### Another ###\nC# is a language.") == [
        "It says something.",
        "C# is a language.",
    ]
    (sentence,) = split_sentences("word " * 400)
    assert len(sentence) <= 502
    assert sentence.endswith("…")


def test_cjk_sentences_end_without_a_space():
    assert split_sentences("今日は晴れ。明日は雨。") == ["今日は晴れ。", "明日は雨。"]
