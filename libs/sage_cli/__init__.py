"""The `sage` command: starts an instance, watches it, talks to it. Nothing else imports this package."""

__all__: list[str] = []
