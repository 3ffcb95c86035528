"""The commands, one module per theme. A module imports what it needs when its command runs: `--help` stays fast."""

__all__: list[str] = []
