"""The command line: all commands, and how what they raise becomes one line and an exit code."""

from __future__ import annotations

import os
import sys

import typer

from sage_cli.commands import fitting, inspection, keys, lifecycle, nats, settings, showcase, simulation, talk
from sage_cli.exits import CommandFailed, Exit, exit_code_of
from sage_core import SageError
from sage_core.settings import refuse_unknown_variables

__all__ = ["app", "run"]

app = typer.Typer(
    name="sage",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Serve pipelines, not just models: one OpenAI-compatible endpoint, scheduled over NATS.

    First steps:  sage demo   |   sage up   then   sage chat "Hello"

    Exit codes: 0 done, 1 failed, 2 wrong usage or settings, 3 nothing is running, 4 not ready in time.""",
)
keys_app = typer.Typer(
    help="API keys of the gateway: make, list, rotate and revoke them.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
nats_app = typer.Typer(
    help="The bus of a cluster: its users and their rights, the server's configuration, streams.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
config_app = typer.Typer(help="Show and check settings.", no_args_is_help=True, rich_markup_mode=None)

for _command in (
    lifecycle.up,
    lifecycle.status,
    talk.chat,
    talk.index,
    talk.ask,
    showcase.demo,
    inspection.trace,
    inspection.explain,
    inspection.plan,
    inspection.replay,
    simulation.simulate,
    fitting.fit_profile,
    lifecycle.logs,
    lifecycle.stop,
    lifecycle.version,
):
    app.command(_command.__name__.replace("_", "-"))(_command)
config_app.command("show")(settings.show)
config_app.command("check")(settings.check)
app.add_typer(config_app, name="config")
keys_app.command("create")(keys.create)
keys_app.command("list")(keys.list_keys)
keys_app.command("rotate")(keys.rotate)
keys_app.command("revoke")(keys.revoke)
app.add_typer(keys_app, name="keys")
nats_app.command("credentials")(nats.credentials)
nats_app.command("config")(nats.config)
nats_app.command("provision")(nats.provision)
app.add_typer(nats_app, name="nats")


def run(arguments: list[str]) -> int:
    """Run one command line; return its exit code. Bugs keep their traceback."""
    try:
        if not {"-h", "--help"}.intersection(arguments):
            refuse_unknown_variables(os.environ)
        result = app(args=arguments, prog_name="sage", standalone_mode=False)
    except CommandFailed as error:
        _say(error.message)
        return error.code
    except SageError as error:
        _say(error.message)
        return exit_code_of(error)
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has gone (`sage logs | head`); keep Python from complaining at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.OK
    except Exception as error:
        # Typer's usage errors have no public base class in every supported version.
        text = getattr(error, "format_message", None)
        if text is None:
            raise
        _say(f"{text().rstrip('.')} (see `{_command_path(error)} --help`)")
        return Exit.USAGE
    return result if isinstance(result, int) else Exit.OK


def _say(message: str) -> None:
    for line in message.splitlines() or [""]:
        print(f"sage: {line}", file=sys.stderr)


def _command_path(error: Exception) -> str:
    context = getattr(error, "ctx", None)
    return str(getattr(context, "command_path", "sage"))
