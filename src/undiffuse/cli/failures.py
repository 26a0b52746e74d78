"""From an exception to one line on stderr and an exit code; no traceback reaches a user unasked."""

from __future__ import annotations

import dis
import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

import typer

from undiffuse.errors import PeerError, UndiffuseError
from undiffuse.models.world import have_met, speaks

DONE, FAILED, WRONG_USAGE, INTERRUPTED = 0, 1, 2, 130

_NO_ROOM = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}
_NOT_ALLOWED = {errno.EACCES, errno.EPERM, errno.EROFS}
_IN_THE_WAY = {errno.EEXIST, errno.ENOTDIR, errno.EISDIR}


class Interrupted(Exception):
    """The user stopped the work; the message says how to go on."""


@contextmanager
def goes_on(kept: str) -> Iterator[None]:
    """Say on Ctrl-C what is kept, of work that the same command goes on with."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(f"{kept}; the same command goes on.") from None


def report_failure(error: BaseException) -> int:
    """Print what went wrong as one line on stderr and return the exit code."""
    if isinstance(error, SystemExit | typer.Exit):
        return _exit_code(error)
    if isinstance(error, KeyboardInterrupt | typer.Abort | Interrupted):
        if speaks():
            _print("interrupted", str(error) or "stopped before the end; files that were written before stay.")
        return INTERRUPTED
    usage = usage_message(error)
    if _is_told(error):
        return WRONG_USAGE if usage is not None else FAILED
    if usage is not None:
        _print("error", usage)
        return WRONG_USAGE
    _print("error", message(error))
    return FAILED


def _is_told(error: BaseException) -> bool:
    """Whether another process of the same command tells of this error, so that people read it once."""
    if isinstance(error, PeerError):
        return error.told or not speaks()
    return not speaks() and not have_met()  # until they meet, all processes do the same


def usage_message(error: BaseException) -> str | None:
    """Return the line for a command line that typer refuses, None for all other errors."""
    if not callable(getattr(error, "format_message", None)):
        return None
    context = getattr(error, "ctx", None)
    place = context.command_path if context is not None else "undiffuse"
    said = f"{error.format_message()}{_refused_value(error)}"  # type: ignore[attr-defined]
    return f"{said if said.endswith(('.', '?')) else f'{said}.'} See {place} --help."


def _refused_value(error: BaseException) -> str:
    """Return what was written where typer's line does not say it: where pydantic, the cause, could not read it."""
    details = getattr(error.__cause__, "errors", None)
    return f"; given {details()[0]['input']!r}" if callable(details) else ""


def message(error: BaseException) -> str:
    """Return what an error says to a user, as one line with a remedy."""
    if isinstance(error, UndiffuseError) or _is_refusal(error):
        return str(error)
    if _is_out_of_memory(error):
        return (
            "out of memory; lower -n or the batch size, or use a smaller model (undiffuse doctor shows what is free)."
        )
    if isinstance(error, OSError):
        return _disk_message(error)
    what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return f"{what} (this is a bug; run with --debug for the traceback)"


def _is_refusal(error: BaseException) -> bool:
    """Whether our own code refused an argument by a `raise` statement.

    A ValueError or TypeError that Python or another library raised is a bug of ours, not of the user's. The module of
    the innermost frame cannot tell: `float("x")`, an unpacking, or a torch operation fails in C, without a frame of
    its own, and so inside ours. The instruction it stopped at can.
    """
    if not isinstance(error, ValueError | TypeError):
        return False
    trace = _innermost(error.__traceback__)
    if trace is None or not str(trace.tb_frame.f_globals.get("__name__", "")).startswith("undiffuse."):
        return False
    instruction = trace.tb_frame.f_code.co_code[trace.tb_lasti]
    return dis.opname[instruction] == "RAISE_VARARGS"


def _innermost(trace: TracebackType | None) -> TracebackType | None:
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out; torch tells it by a class of its own on a GPU and by the text alone on a CPU."""
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))


def _disk_message(error: OSError) -> str:
    reason = error.strerror or str(error) or type(error).__name__
    place = f" ({error.filename})" if error.filename else ""
    if error.errno in _NO_ROOM:
        remedy = "make room, or choose another place with --out"
    elif error.errno in _NOT_ALLOWED:
        remedy = "check its permissions, or choose another place with --out"
    elif error.errno in _IN_THE_WAY:
        remedy = "a file or folder of that name is in the way; choose another place with --out"
    else:
        remedy = "check the path"
    return f"{reason}{place}; {remedy}."


def _exit_code(error: BaseException) -> int:
    code = getattr(error, "exit_code", getattr(error, "code", DONE))
    return code if isinstance(code, int) else (DONE if code is None else FAILED)


def _print(word: str, text: str) -> None:
    print(f"{word}: {' '.join(text.split())}", file=sys.stderr)
