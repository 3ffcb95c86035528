"""Messages, codec, subjects and call headers: everything two processes must agree on."""

from sage_wire import subjects
from sage_wire.codec import decode, decode_work, encode, encode_list, raw
from sage_wire.headers import CallHeaders

__all__ = ["CallHeaders", "decode", "decode_work", "encode", "encode_list", "raw", "subjects"]
