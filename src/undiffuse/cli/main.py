"""The entry point: find the sub-command, load it alone, run it, and turn what goes wrong into one line."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Annotated, Any, NoReturn

import typer

from undiffuse.cli.failures import INTERRUPTED, report_failure

COMMANDS = {
    "train": ("undiffuse.cli.train:train", "Train a model on your data, or go on with a run."),
    "train-codec": ("undiffuse.cli.train_codec:train_codec", "Train a codec alone: what turns data into latents."),
    "codec": ("undiffuse.cli.codec:codec", "Report the health of a codec's codebook, or rebuild the codebook."),
    "distill": ("undiffuse.cli.distill:distill", "Train a few-step generator that starts as a model."),
    "sample": ("undiffuse.cli.sample:sample", "Draw samples from a model."),
    "inpaint": ("undiffuse.cli.inpaint:inpaint", "Fill what is missing of texts, rows and pictures made of tokens."),
    "evaluate": ("undiffuse.cli.evaluate:evaluate", "Compare a model with real data."),
    "likelihood": ("undiffuse.cli.likelihood:likelihood", "Say how likely data are under a model."),
    "degrade": ("undiffuse.cli.degrade:degrade", "Measure pictures: what a restoration undoes."),
    "restore": ("undiffuse.cli.restore:restore", "Restore pictures, with a map of how sure the answer is."),
    "solvers": ("undiffuse.cli.solvers:solvers", "List the solvers, or find the best one for a model."),
    "convert": ("undiffuse.cli.convert:convert", "Write a model as a folder that diffusers reads."),
    "info": ("undiffuse.cli.info:info", "Say what a model, a run, a data set or a recipe is."),
    "ema": ("undiffuse.cli.ema:ema", "Average a run's weights over another width, after the run."),
    "accelerate": ("undiffuse.cli.accelerate:accelerate", "Tune a model for few sampling steps, and compare."),
    "report": ("undiffuse.cli.report:report", "Write the HTML report of a run."),
    "demo": ("undiffuse.cli.demo:demo", "Train two small models and show everything in one report (6 minutes)."),
    "papers": ("undiffuse.cli.papers:papers", "List the papers, or reproduce the main claim of one."),
    "bench-restore": ("undiffuse.cli.bench_restore:bench_restore", "Measure restoration methods on known data."),
    "bench": ("undiffuse.cli.bench:bench", "Run the benchmarks of the source repository and write one page."),
    "doctor": ("undiffuse.cli.doctor:doctor", "Say what this machine can do, and check that it computes right."),
}
"""Sub-command -> (where it is, what it does)."""

_EPILOG = """\b
First steps:
  undiffuse train digits
  undiffuse sample runs/digits -n 64
--debug, anywhere, shows the traceback of an error.
"""
_CONTEXT = {"help_option_names": ["-h", "--help"]}


def main() -> NoReturn:
    """Run the command line of this process and exit: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code."""
    debug = "--debug" in arguments
    words = [word for word in arguments if word != "--debug"] or ["--help"]
    try:
        if words[0] in COMMANDS:
            return _call(_sub_command(words[0]), f"undiffuse {words[0]}", words[1:])
        return _call(_overview(), "undiffuse", words)
    except BaseException as error:
        if debug and not isinstance(error, SystemExit):
            raise
        return report_failure(error)


def _call(app: typer.Typer, name: str, words: list[str]) -> int:
    returned = app(args=words, prog_name=name, standalone_mode=False)
    if returned == INTERRUPTED:  # how typer passes Ctrl-C on
        raise KeyboardInterrupt
    return returned if isinstance(returned, int) else 0


def _sub_command(name: str) -> typer.Typer:
    """Return one sub-command as a command of its own.

    Inside a group, typer would read the options of the group first, and load pydantic for that even where help is all
    that was asked for.
    """
    location, summary = COMMANDS[name]
    function = _load(location)
    app = _typer()
    epilog = getattr(sys.modules[function.__module__], "EPILOG", None)
    app.command(name, short_help=summary, epilog=epilog, context_settings=_CONTEXT)(function)
    return app


def _overview() -> typer.Typer:
    """Return the command as a group whose sub-commands are listed but not loaded."""
    app = _typer(help="One denoiser, every task: train diffusion models on your own data and use them.", epilog=_EPILOG)
    app.callback()(_options)
    for name, (_, summary) in COMMANDS.items():
        app.command(name, short_help=summary)(_not_loaded)
    return app


def _typer(**settings: Any) -> typer.Typer:
    """Return an app with plain help pages: rich ones cost more than everything else here together."""
    return typer.Typer(rich_markup_mode=None, add_completion=False, context_settings=_CONTEXT, **settings)


def _load(location: str) -> Callable[..., Any]:
    module, _, attribute = location.partition(":")
    return getattr(import_module(module), attribute)


def _not_loaded() -> None:
    """Stand in for a sub-command in the overview, which only lists them."""


def _show_version(asked: bool) -> None:
    if asked:
        from undiffuse import __version__

        typer.echo(f"undiffuse {__version__}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass
