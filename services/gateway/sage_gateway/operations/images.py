"""Images inside messages: `data:` URLs alone. The server fetches no URL, as it stands where clients do not."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Final

from sage_gateway.operations.refusal import wrong
from sage_wire.messages import Image

__all__ = ["MAX_IMAGES", "read_image"]

MAX_IMAGES: Final = 16
"""In all messages of a request together."""

_DATA_URL: Final = re.compile(r"data:(?P<type>[a-zA-Z0-9/+.-]{1,64});base64,")
_MAGIC: Final = {
    "image/png": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "image/jpeg": re.compile(rb"\xff\xd8\xff"),
    "image/gif": re.compile(rb"GIF8[79]a"),
    "image/webp": re.compile(rb"RIFF....WEBP", re.DOTALL),
}


def read_image(url: str, position: int, param: str) -> Image:
    """Return the image that `url` holds, to stand before character `position`. Raises BadRequest naming `param`."""
    found = _DATA_URL.match(url)
    if found is None:
        raise wrong(param, "expected a data: URL (data:image/png;base64,…); this server fetches no URLs")
    media_type = found["type"].lower().replace("image/jpg", "image/jpeg")
    magic = _MAGIC.get(media_type)
    if magic is None:
        raise wrong(param, f"found '{media_type}'; expected one of {', '.join(sorted(_MAGIC))}")
    try:
        data = base64.b64decode(url[found.end() :], validate=True)
    except (binascii.Error, ValueError):
        raise wrong(param, "the data is not valid base64") from None
    if magic.match(data) is None:
        raise wrong(param, f"the data is no {media_type}")
    return Image(media_type=media_type, data=data, position=position)
