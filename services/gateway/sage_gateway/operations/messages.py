"""Messages of a conversation: OpenAI's turns to the wire's, in every role and with every kind of content."""

from __future__ import annotations

from typing import Final

from sage_gateway.decoding import is_null
from sage_gateway.operations.images import MAX_IMAGES, read_image
from sage_gateway.operations.message_body import ContentPart, MessageBody
from sage_gateway.operations.refusal import missing, too_many, wrong
from sage_wire.messages import ChatMessage, Image, ServedModel, ToolCall

__all__ = ["chat_messages"]

_PART_FIELDS: Final = {
    "image_url": "image_url",
    "input_audio": "input_audio",
    "file": "file",
    "video_url": "video_url",
    "audio_url": "audio_url",
}


def chat_messages(bodies: list[MessageBody], served: ServedModel) -> list[ChatMessage]:
    """Return the turns. Raises BadRequest and LimitExceeded naming the part that is wrong or not understood."""
    conversation = _Conversation(served)
    messages = []
    for index, body in enumerate(bodies):
        role = body.role
        if type(body.content) is str and (role == "user" or role == "system"):
            messages.append(ChatMessage(role=role, content=body.content, name=body.name))
        else:
            messages.append(conversation.turn(body, index))
    return messages


class _Conversation:
    """Knows which calls were made, as a tool's turn must answer one of them."""

    def __init__(self, served: ServedModel) -> None:
        self._served = served
        self._calls: dict[str, str] = {}
        self._num_images = 0

    def turn(self, body: MessageBody, index: int) -> ChatMessage:
        param = f"messages[{index}]"
        if not is_null(body.audio):
            raise wrong(f"{param}.audio", "only text is understood")
        match body.role:
            case "assistant":
                return self._assistant(body, param, index)
            case "tool":
                if body.tool_call_id is None:
                    raise missing(f"{param}.tool_call_id")
                if body.tool_call_id not in self._calls:
                    raise wrong(
                        f"{param}.tool_call_id", "answers no call of an assistant's message before this one"
                    )
                return self._answer(body, param, body.tool_call_id)
            case "function":
                return self._function(body, param)
        content, images = self._content(body, f"{param}.content")
        return ChatMessage(role=body.role, content=content, name=body.name, images=images)

    def _assistant(self, body: MessageBody, param: str, index: int) -> ChatMessage:
        calls = [
            ToolCall(id=call.id, name=call.function.name, arguments=call.function.arguments)
            for call in body.tool_calls or ()
        ]
        if body.function_call is not None:
            # The deprecated form has no ids; the function's answer finds the call by its name.
            made = body.function_call
            calls.append(ToolCall(id=f"call{index:05d}", name=made.name, arguments=made.arguments))
        for call in calls:
            self._calls[call.id] = call.name
        content, _ = self._content(body, f"{param}.content")
        return ChatMessage(
            role="assistant",
            content=content or body.refusal or "",
            name=body.name,
            tool_calls=calls,
            reasoning=body.reasoning_content or body.reasoning,
        )

    def _function(self, body: MessageBody, param: str) -> ChatMessage:
        call_id = next((call for call, name in reversed(self._calls.items()) if name == body.name), None)
        if call_id is None:
            raise wrong(f"{param}.name", "answers no function call of an assistant's message before this one")
        return self._answer(body, param, call_id)

    def _answer(self, body: MessageBody, param: str, call_id: str) -> ChatMessage:
        content, images = self._content(body, f"{param}.content")
        name = body.name or self._calls[call_id]
        return ChatMessage(role="tool", content=content, name=name, tool_call_id=call_id, images=images)

    def _content(self, body: MessageBody, param: str) -> tuple[str, list[Image]]:
        if isinstance(body.content, str):
            return body.content, []
        if body.content is None:
            if body.role != "assistant":
                raise wrong(param, f"is missing; a {body.role} message needs text")
            return "", []
        texts: list[str] = []
        num_chars = 0
        images: list[Image] = []
        for index, part in enumerate(body.content):
            where = f"{param}[{index}]"
            text = self._text(part, body.role, where)
            if text is None:
                images.append(self._image(part, num_chars, where))
            else:
                num_chars += len(text) + (1 if texts else 0)
                texts.append(text)
        return "\n".join(texts), images

    def _text(self, part: ContentPart, role: str, param: str) -> str | None:
        """Return the text of a part, None for an image."""
        if part.type == "text":
            if part.text is None:
                raise missing(f"{param}.text")
            return part.text
        if part.type == "refusal" and role == "assistant":
            if part.refusal is None:
                raise missing(f"{param}.refusal")
            return part.refusal
        if part.type == "image_url" and role in ("user", "tool"):
            return None
        where = f"{param}.{_PART_FIELDS.get(part.type, 'type')}"
        understood = "text and images" if self._served.takes_images else "text"
        raise wrong(where, f"found '{part.type[:40]}'; {self._served.name} understands {understood} here")

    def _image(self, part: ContentPart, position: int, param: str) -> Image:
        image = part.image_url
        if not self._served.takes_images:
            raise wrong(f"{param}.image_url", f"{self._served.name} understands text alone")
        if image is None:
            raise missing(f"{param}.image_url")
        self._num_images += 1
        if self._num_images > MAX_IMAGES:
            raise too_many(f"{param}.image_url", self._num_images, MAX_IMAGES, "images")
        if isinstance(image, str):
            return read_image(image, position, f"{param}.image_url")
        return read_image(image.url, position, f"{param}.image_url.url")
