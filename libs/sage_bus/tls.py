"""The TLS side of a connection: whose signature the server's certificate needs, and our own certificate."""

from __future__ import annotations

import ssl
from pathlib import Path

from sage_core import BusSettings, ConfigurationError

__all__ = ["tls_context"]


def tls_context(settings: BusSettings) -> ssl.SSLContext | None:
    """Return how to speak TLS, None where it is not configured. Raises ConfigurationError naming key and file."""
    if settings.tls_ca_file is None:
        if settings.tls_cert_file is not None or settings.tls_key_file is not None:
            raise ConfigurationError("bus.tls_cert_file and bus.tls_key_file need bus.tls_ca_file")
        return None
    context = _trusting(settings.tls_ca_file)
    if settings.tls_cert_file is None and settings.tls_key_file is None:
        return context
    if settings.tls_cert_file is None or settings.tls_key_file is None:
        raise ConfigurationError("bus.tls_cert_file and bus.tls_key_file are only good together")
    try:
        context.load_cert_chain(settings.tls_cert_file, settings.tls_key_file)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(
            f"bus.tls_cert_file, bus.tls_key_file: cannot use {settings.tls_cert_file} with "
            f"{settings.tls_key_file}: {error}"
        ) from None
    return context


def _trusting(bundle: Path) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=bundle)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(f"bus.tls_ca_file: cannot read {bundle}: {error}") from None
