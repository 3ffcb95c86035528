"""HTTP/1.1 as the gateway speaks it: connections, their limits, and the order of answers. Knows no routes."""

from sage_gateway.http.application import Answerer, Application
from sage_gateway.http.connection import Connection
from sage_gateway.http.exchange import Exchange
from sage_gateway.http.head import JSON, Header, header_lines
from sage_gateway.http.server import HttpServer, listen

__all__ = [
    "JSON",
    "Answerer",
    "Application",
    "Connection",
    "Exchange",
    "Header",
    "HttpServer",
    "header_lines",
    "listen",
]
