"""`undiffuse bench`: run the benchmark scripts of the source repository and write one page with what they found."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from undiffuse.cli.shared import Json

if TYPE_CHECKING:
    from undiffuse.cli.output import Output
    from undiffuse.events import Listener
    from undiffuse.report.bench import Outcome

EPILOG = """\b
Examples:
  undiffuse bench --list
  undiffuse bench import_time sampler_cost --out bench.html
  undiffuse bench --quick
"""

_TASK = "bench"
_GRACE = 5.0  # seconds that a script has to end when it is told to
_FORMAT_MODULE = "undiffuse.report.measures"


def bench(
    names: Annotated[
        list[str] | None, typer.Argument(help="Scripts, such as import_time; default: all.", show_default=False)
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Page to write.")] = Path("bench.html"),
    folder: Annotated[
        Path | None,
        typer.Option(help="Folder of the scripts; default: benchmarks/ here or in the source.", show_default=False),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer rounds: to try it, not for figures to report.")] = False,
    show: Annotated[bool, typer.Option("--list", help="List the scripts and end.")] = False,
    json: Json = False,
) -> None:
    """Run the benchmark scripts, each in a process of its own, and write one page: figures beside what was asked."""
    from undiffuse.cli.output import Output

    output = Output(json)
    scripts = find_scripts(find_folder(folder))
    if show:
        summaries = {name: first_line(path) for name, path in scripts.items()}
        output.pairs(summaries)
        output.result({"scripts": summaries})
        return
    chosen = choose(scripts, names or [])
    outcomes = run_all(chosen, out, ["--quick"] if quick else [], output)
    finish(output, outcomes, out)


# -- which scripts ------------------------------------------------------------------------------------


def find_folder(folder: Path | None) -> Path:
    """Return the folder of the benchmark scripts.

    Raises:
        UndiffuseError: There is none.
    """
    from undiffuse.errors import UndiffuseError

    source = Path(__file__).parents[3] / "benchmarks"
    places = [folder] if folder is not None else [Path("benchmarks"), source]
    for place in places:
        if place.is_dir() and find_scripts(place):
            return place
    looked = " or ".join(str(place) for place in places)
    raise UndiffuseError(
        f"no benchmark scripts in {looked}; they are part of the source repository, not of the installed package: run "
        f"this in a checkout, or name its folder with --folder."
    )


def find_scripts(folder: Path) -> dict[str, Path]:
    """Return name -> path of the scripts that publish results; other files of the folder are none."""
    found = {}
    for path in sorted(folder.glob("*.py")):
        text = path.read_text(encoding="utf-8")
        if _FORMAT_MODULE in text and "publish(" in text:
            found[path.stem] = path
    return found


def choose(scripts: Mapping[str, Path], names: Sequence[str]) -> dict[str, Path]:
    """Return the scripts named, all where none is; "import_time.py" and a path mean import_time.

    Raises:
        ValueError: There is no script of that name.
    """
    from undiffuse.words import did_you_mean

    wanted = [Path(name).stem for name in names]
    for name in wanted:
        if name not in scripts:
            known = ", ".join(scripts)
            raise ValueError(f"there is no benchmark {name!r}; choose from {known}.{did_you_mean(name, scripts)}")
    return {name: scripts[name] for name in dict.fromkeys(wanted)} if wanted else dict(scripts)


def first_line(path: Path) -> str:
    """Return the first line of a script's docstring."""
    import ast

    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return doc.split("\n", 1)[0]


# -- running them -------------------------------------------------------------------------------------


def run_all(scripts: Mapping[str, Path], out: Path, arguments: Sequence[str], output: Output) -> list[Outcome]:
    """Run scripts one after the other; the page is written after each, so that stopping loses the present one alone.

    Raises:
        Interrupted: Ctrl-C; the page holds what was done.
    """
    from undiffuse.cli.failures import Interrupted
    from undiffuse.events import Advanced, Finished, Message, Started
    from undiffuse.report.bench import bench_report

    about = facts(next(iter(scripts.values())).parent)
    outcomes: list[Outcome] = []
    with output.progress() as listener:
        listener(Started(_TASK, len(scripts), "script"))
        for number, (name, path) in enumerate(scripts.items(), 1):
            listener(Message(_TASK, f"{name} ({number} of {len(scripts)})"))
            try:
                outcomes.append(run_script(name, path, arguments, listener))
            except KeyboardInterrupt:
                raise Interrupted(_stopped(out, len(outcomes), len(scripts))) from None
            bench_report(outcomes, about, list(scripts)[number:]).write(out)
            listener(Advanced(_TASK, number))
        listener(Finished(_TASK, str(out)))
    return outcomes


def run_script(name: str, path: Path, arguments: Sequence[str], listener: Listener) -> Outcome:
    """Run one script in a process of its own and read its results; what it says on stderr is passed on."""
    from undiffuse.errors import UndiffuseError
    from undiffuse.events import Message
    from undiffuse.report.bench import Outcome
    from undiffuse.report.measures import read_results

    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "results.json"
        command = [sys.executable, str(path.resolve()), "--out", str(target), *arguments]
        code, said = _call(command, lambda line: listener(Message(_TASK, f"  {line}")))
        taken = time.monotonic() - started
        if code:
            listener(Message(_TASK, f"{name} failed; the page says how", "warning"))
            return Outcome(name, taken, problem=f"{said}\nexit code {code}")
        try:
            return Outcome(name, taken, read_results(target))
        except UndiffuseError as error:
            listener(Message(_TASK, f"{name}: {error}", "warning"))
            return Outcome(name, taken, problem=str(error))


def _call(command: Sequence[str], tell: Callable[[str], None]) -> tuple[int, str]:
    """Return exit code and stderr of a command, which does not outlive us."""
    lines = []
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, encoding="utf-8", errors="replace"
    ) as process:
        try:
            assert process.stderr is not None
            for line in process.stderr:
                lines.append(line.rstrip("\n"))
                tell(lines[-1])
        except BaseException:
            _end(process)
            raise
    return process.returncode, "\n".join(lines)


def _end(process: subprocess.Popen[str]) -> None:
    """End a script; one that takes the signal for something else, as a training does, gets no second chance."""
    process.terminate()
    try:
        process.wait(_GRACE)
    except subprocess.TimeoutExpired:
        process.kill()


def _stopped(out: Path, done: int, asked: int) -> str:
    if not done:
        return "no benchmark was done yet; nothing was written."
    return f"{done} of {asked} benchmarks are done; {out} holds them."


# -- what is said about it ----------------------------------------------------------------------------


def facts(folder: Path) -> dict[str, Any]:
    """Return what figures depend on: versions, machine, how busy it was, date, and the commit where git knows it."""
    import platform
    from datetime import UTC, datetime
    from importlib.metadata import PackageNotFoundError, version

    from undiffuse import __version__
    from undiffuse.report.measures import load_average

    found: dict[str, Any] = {"undiffuse": __version__}
    commit = commit_of(folder)
    if commit:
        found["commit"] = commit
    for name in ("torch", "diffusers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    load = load_average()
    return found | {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "processors": os.cpu_count(),
        **({"load at the start": load["load"]} if load else {}),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def processor() -> str:
    """Return the name of the processor as far as the system tells it."""
    import platform

    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or "unknown"


def commit_of(folder: Path) -> str | None:
    """Return the commit that a folder is at, marked where files differ from it; None without git."""
    command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() or None
    except (OSError, subprocess.CalledProcessError):
        return None


def finish(output: Output, outcomes: Sequence[Outcome], out: Path) -> None:
    """Say what was found; exit with 1 where a script failed."""
    from undiffuse.report.bench import row, tally

    for outcome in outcomes:
        for measure in outcome.results.measures if outcome.results else ():
            if measure.met is not None:
                name, value, asked, verdict, _ = row(measure)
                output.say(f"{verdict:>16}  {name}: {value}, asked {asked}", None if measure.met else "yellow")
    scripts = {
        outcome.name: outcome.results.to_json() if outcome.results else {"problem": outcome.problem}
        for outcome in outcomes
    }
    output.say(tally(outcomes))
    output.finish(f"The page is {out}", {"page": out, "scripts": scripts})
    if any(outcome.results is None for outcome in outcomes):
        raise typer.Exit(1)
