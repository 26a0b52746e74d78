"""The entry point: find the sub-command, load it alone, run it, and turn what goes wrong into one line."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Annotated, Any, NoReturn

import typer

from undiffuse.cli.failures import INTERRUPTED, report_failure
from undiffuse.cli.help import sectioned_command, sectioned_group

COMMANDS = {
    "train": ("undiffuse.cli.train:train", "Train a model on your data, or go on with a run."),
    "train-codec": ("undiffuse.cli.train_codec:train_codec", "Train a codec alone: what turns data into latents."),
    "codec": ("undiffuse.cli.codec:codec", "Report the health of a codec's codebook, or rebuild the codebook."),
    "distill": ("undiffuse.cli.distill:distill", "Train a few-step generator that starts as a model."),
    "sample": ("undiffuse.cli.sample:sample", "Draw samples from a model."),
    "inpaint": ("undiffuse.cli.inpaint:inpaint", "Fill what is missing of texts, rows and pictures made of tokens."),
    "interpolate": ("undiffuse.cli.interpolate:interpolate", "Draw items between two others, with a model of tokens."),
    "evaluate": ("undiffuse.cli.evaluate:evaluate", "Compare a model with real data."),
    "classify": ("undiffuse.cli.classify:classify", "Say which class or text fits pictures and other data best."),
    "features": ("undiffuse.cli.features:features", "Write features of data from the inside of a model."),
    "probe": ("undiffuse.cli.probe:probe", "Train a classifier on a model's features, and judge it."),
    "cka": ("undiffuse.cli.cka:cka", "Say how alike the layers of models are."),
    "likelihood": ("undiffuse.cli.likelihood:likelihood", "Say how likely data are under a model."),
    "degrade": ("undiffuse.cli.degrade:degrade", "Measure pictures: what a restoration undoes."),
    "match": ("undiffuse.cli.match:match", "Find points of one picture in others, or put its object into another."),
    "restore": ("undiffuse.cli.restore:restore", "Restore pictures, with a map of how sure the answer is."),
    "solvers": ("undiffuse.cli.solvers:solvers", "List the solvers, or find the best one for a model."),
    "convert": ("undiffuse.cli.convert:convert", "Write a model as a folder that diffusers reads."),
    "info": ("undiffuse.cli.info:info", "Say what a model, a run, a data set or a recipe is."),
    "ema": ("undiffuse.cli.ema:ema", "Average a run's weights over another width, after the run."),
    "accelerate": ("undiffuse.cli.accelerate:accelerate", "Tune a model for few sampling steps, and compare."),
    "report": ("undiffuse.cli.report:report", "Write the HTML report of a run."),
    "demo": ("undiffuse.cli.demo:demo", "Train two small models and show everything in one report (6 minutes)."),
    "papers": ("undiffuse.cli.papers:papers", "List the papers, or reproduce the main claim of one."),
    "bench-compose": ("undiffuse.cli.bench_compose:bench_compose", "Measure which texts a model fits to pictures."),
    "self-bench": ("undiffuse.cli.self_bench:self_bench", "Let a model draw its own test of matching."),
    "learn-weights": ("undiffuse.cli.learn_weights:learn_weights", "Learn how much each noise level shall count."),
    "bench-match": ("undiffuse.cli.bench_match:bench_match", "Measure how well features find corresponding points."),
    "bench-restore": ("undiffuse.cli.bench_restore:bench_restore", "Measure restoration methods on known data."),
    "bench": ("undiffuse.cli.bench:bench", "Run the benchmarks of the source repository and write one page."),
    "doctor": ("undiffuse.cli.doctor:doctor", "Say what this machine can do, and check that it computes right."),
}
"""Sub-command -> (where it is, what it does)."""

SECTIONS = {
    "Train": ("train", "train-codec", "codec", "distill", "accelerate", "ema"),
    "Sample and restore": ("sample", "inpaint", "interpolate", "restore", "degrade"),
    "Understand data by a model": ("likelihood", "classify", "features", "probe", "cka", "match", "learn-weights"),
    "Measure and compare": (
        "evaluate",
        "solvers",
        "bench-restore",
        "bench-match",
        "bench-compose",
        "self-bench",
        "papers",
        "bench",
    ),
    "Look around": ("demo", "info", "report", "convert", "doctor"),
}
"""How the overview lists them."""

_EPILOG = """\b
First steps:
  undiffuse train digits
  undiffuse sample runs/digits -n 64
  undiffuse train --help        each command has such a page, with examples
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
    module = sys.modules[function.__module__]
    app.command(
        name,
        cls=sectioned_command(getattr(module, "SECTIONS", {})),
        short_help=summary,
        epilog=getattr(module, "EPILOG", None),
        context_settings=_CONTEXT,
    )(function)
    return app


def _overview() -> typer.Typer:
    """Return the command as a group whose sub-commands are listed but not loaded."""
    app = _typer(
        cls=sectioned_group(SECTIONS),
        help="One denoiser, every task: train diffusion models on your own data and use them.",
        epilog=_EPILOG,
    )
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
