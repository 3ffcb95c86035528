"""What a request brings becomes items, and items become the messages of a chat prompt. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msgspec import UNSET

from sage_core import BadRequest
from sage_gateway.operations.images import read_image
from sage_gateway.operations.refusal import missing, wrong
from sage_gateway.responses.bodies import InputItem, InputPart
from sage_gateway.responses.items import (
    FunctionCall,
    FunctionCallOutput,
    InputImage,
    InputText,
    Item,
    ItemIds,
    Message,
    OutputText,
    ReasoningItem,
    ReasoningText,
    Refusal,
    SummaryText,
)
from sage_wire.messages import ChatMessage, Image, ToolCall

__all__ = ["Reference", "chat_messages", "input_items", "shortened"]

_PARTS_OF: dict[str, tuple[str, ...]] = {
    "assistant": ("output_text", "refusal"),
    "user": ("input_text", "input_image"),
    "system": ("input_text",),
    "developer": ("input_text",),
}
_NO_TEXT = ("input_image", "input_file", "input_audio", "input_video")
"""Where they are not expected, they are refused with the reason."""


class Reference:
    """An item of an earlier response, named by its id and still to be found. `param` is where it was asked for."""

    __slots__ = ("item_id", "param")

    def __init__(self, item_id: str, param: str) -> None:
        self.item_id = item_id
        self.param = param


def input_items(given: str | Sequence[InputItem] | None, ids: ItemIds) -> list[Item | Reference]:
    """Return what the input says, item by item; those without an id get one.

    Raises BadRequest naming the part that is wrong or not supported.
    """
    if given is None:
        return []
    if isinstance(given, str):
        _refuse(not given, "input", "is empty; expected text or a list of items")
        return [Message(ids.next("msg"), "user", [InputText(given)])]
    return [_item(item, f"input[{index}]", ids) for index, item in enumerate(given)]


def chat_messages(instructions: str | None, items: Iterable[Item]) -> list[ChatMessage]:
    """Return the conversation as messages.

    Neighbouring calls are one turn of the assistant, together with the text right before them; reasoning belongs to
    the turn that follows it, and reasoning that nothing follows is left out. Raises BadRequest for the output of a
    call that nobody made.
    """
    turns = _Turns()
    if instructions:
        turns.messages.append(ChatMessage(role="system", content=instructions))
    for item in items:
        match item:
            case Message(role="assistant"):
                turns.say(_message_text(item))
            case Message():
                turns.close()
                turns.messages.append(_message_of(item))
            case FunctionCall():
                turns.call(item)
            case FunctionCallOutput():
                turns.answer(item)
            case ReasoningItem():
                turns.reason(item)
    turns.close()
    return turns.messages


def shortened(items: Sequence[Item]) -> list[Item] | None:
    """Return `items` without the older half of what may be left out; None where nothing may.

    Kept are system's and developer's messages, the last item, and the calls that are answered at the end.
    """
    answered: set[str] = set()
    for item in reversed(items):
        if not isinstance(item, FunctionCallOutput):
            break
        answered.add(item.call_id)
    droppable = [
        index
        for index, item in enumerate(items[: len(items) - max(1, len(answered))])
        if not (isinstance(item, Message) and item.role in ("system", "developer"))
        and not (isinstance(item, FunctionCall) and item.call_id in answered)
    ]
    if not droppable:
        return None
    dropped = set(droppable[: (len(droppable) + 1) // 2])
    kept: list[Item] = []
    made: set[str] = set()
    for index, item in enumerate(items):
        # The output of a call that is left out goes with it.
        if index in dropped or (isinstance(item, FunctionCallOutput) and item.call_id not in made):
            continue
        if isinstance(item, FunctionCall):
            made.add(item.call_id)
        kept.append(item)
    return kept


class _Turns:
    """Gathers items of the assistant into turns."""

    def __init__(self) -> None:
        self.messages: list[ChatMessage] = []
        self._names: dict[str, str] = {}
        self._content: str | None = None
        self._calls: list[ToolCall] = []
        self._reasoning: list[str] = []

    def reason(self, item: ReasoningItem) -> None:
        if self._is_open:
            self.close()
        parts: Sequence[ReasoningText | SummaryText] = item.content or item.summary
        self._reasoning += [part.text for part in parts]

    def say(self, content: str) -> None:
        if self._is_open:
            self.close()
        self._content = content

    def call(self, item: FunctionCall) -> None:
        self._names[item.call_id] = item.name
        self._calls.append(ToolCall(id=item.call_id, name=item.name, arguments=item.arguments))

    def answer(self, item: FunctionCallOutput) -> None:
        self.close()
        if item.call_id not in self._names:
            raise BadRequest(
                f"no tool call found for function call output with call_id {item.call_id[:80]!r}",
                param="input",
            )
        output = item.output
        content = output if isinstance(output, str) else "\n".join(part.text for part in output)
        name = self._names[item.call_id]
        self.messages.append(ChatMessage(role="tool", content=content, name=name, tool_call_id=item.call_id))

    def close(self) -> None:
        if self._is_open:
            self.messages.append(
                ChatMessage(
                    role="assistant",
                    content=self._content or "",
                    tool_calls=self._calls,
                    reasoning="\n".join(self._reasoning) or None,
                )
            )
        self._content, self._calls, self._reasoning = None, [], []

    @property
    def _is_open(self) -> bool:
        return self._content is not None or bool(self._calls)


def _message_text(message: Message) -> str:
    """Return the text of an assistant's turn, which holds no images."""
    return "\n".join(
        part.refusal if isinstance(part, Refusal) else part.text
        for part in message.content
        if not isinstance(part, InputImage)
    )


def _message_of(message: Message) -> ChatMessage:
    texts: list[str] = []
    images: list[Image] = []
    for part in message.content:
        if isinstance(part, InputImage):
            images.append(read_image(part.image_url, len("\n".join(texts)), "input"))
        else:
            texts.append(part.refusal if isinstance(part, Refusal) else part.text)
    return ChatMessage(role=message.role, content="\n".join(texts), images=images)


def _item(item: InputItem, param: str, ids: ItemIds) -> Item | Reference:
    kind = item.type or ("message" if item.role is not None else "item_reference")
    match kind:
        case "message":
            return _message(item, param, ids)
        case "function_call":
            return FunctionCall(
                item.id or ids.next("fc"),
                _given(item.call_id, f"{param}.call_id"),
                _given(item.name, f"{param}.name"),
                _given(item.arguments, f"{param}.arguments"),
            )
        case "function_call_output":
            output = item.output
            if output is None:
                raise missing(f"{param}.output")
            shown = output if isinstance(output, str) else _texts(output, f"{param}.output", ("input_text",))
            call_id = _given(item.call_id, f"{param}.call_id")
            return FunctionCallOutput(item.id or ids.next("fco"), call_id, shown)
        case "reasoning":
            return _reasoning(item, param, ids)
        case "item_reference":
            return Reference(_given(item.id, f"{param}.id"), f"{param}.id")
        case _:
            raise wrong(
                f"{param}.type",
                f"found '{kind[:60]}'; supported are message, function_call, function_call_output, reasoning and "
                "item_reference",
            )


def _message(item: InputItem, param: str, ids: ItemIds) -> Message:
    role, content = item.role, item.content
    if role is None:
        raise missing(f"{param}.role")
    if content is None:
        raise missing(f"{param}.content")
    phase = item.phase or UNSET
    item_id = item.id or ids.next("msg")
    is_assistant = role == "assistant"
    if isinstance(content, str):
        text = OutputText(content) if is_assistant else InputText(content)
        return Message(item_id, role, [text], phase=phase)
    parts: list[InputText | InputImage | OutputText | Refusal] = []
    for index, part in enumerate(content):
        where = f"{param}.content[{index}]"
        _check_part(part, where, _PARTS_OF[role])
        if part.type == "refusal":
            parts.append(Refusal(_given(part.refusal, f"{where}.refusal")))
            continue
        if part.type == "input_image":
            parts.append(_image(part, where))
            continue
        text_given = _given(part.text, f"{where}.text")
        parts.append(OutputText(text_given) if is_assistant else InputText(text_given))
    return Message(item_id, role, parts, phase=phase)


def _image(part: InputPart, param: str) -> InputImage:
    _refuse(part.file_id is not None, f"{param}.file_id", "there are no files here; send a data: URL")
    url = _given(part.image_url, f"{param}.image_url")
    is_data = url.startswith("data:")
    _refuse(not is_data, f"{param}.image_url", "expected a data: URL; this server fetches no URLs")
    return InputImage(url, part.detail or "auto")


def _reasoning(item: InputItem, param: str, ids: ItemIds) -> ReasoningItem:
    _refuse(isinstance(item.content, str), f"{param}.content", "expected a list of reasoning_text parts")
    content = [] if item.content is None or isinstance(item.content, str) else item.content
    return ReasoningItem(
        item.id or ids.next("rs"),
        [SummaryText(text) for text in _strings(item.summary or (), f"{param}.summary", ("summary_text",))],
        [ReasoningText(text) for text in _strings(content, f"{param}.content", ("reasoning_text",))],
    )


def _texts(parts: Sequence[InputPart], param: str, kinds: tuple[str, ...]) -> list[InputText]:
    return [InputText(text) for text in _strings(parts, param, kinds)]


def _strings(parts: Sequence[InputPart], param: str, kinds: tuple[str, ...]) -> list[str]:
    for index, part in enumerate(parts):
        _check_part(part, f"{param}[{index}]", kinds)
    return [_given(part.text, f"{param}[{index}].text") for index, part in enumerate(parts)]


def _check_part(part: InputPart, param: str, kinds: tuple[str, ...]) -> None:
    if part.type in kinds:
        return
    reason = f"found '{part.type[:60]}'; expected {' or '.join(kinds)}"
    if part.type in _NO_TEXT:
        reason = f"found '{part.type}'; only text is understood here, and nothing is fetched for a client"
    raise wrong(f"{param}.type", reason)


def _given(value: str | None, param: str) -> str:
    if value is None:
        raise missing(param)
    return value


def _refuse(is_wrong: bool, param: str, reason: str) -> None:
    if is_wrong:
        raise wrong(param, reason)
