"""Pairs of pictures: a clean one to learn, and a degraded or earlier one that is given, as the map "source"."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path, PurePosixPath

from undiffuse.data.listing import Listing, list_folder, list_zip
from undiffuse.data.sidecars import stem
from undiffuse.errors import DataError

SOURCE = "source"
"""Name of the condition that holds the given picture."""

_FOLDERS = (
    ("input", "target"),
    ("inputs", "targets"),
    ("source", "target"),
    ("before", "after"),
    ("degraded", "clean"),
    ("noisy", "clean"),
    ("lq", "gt"),
    ("lr", "hr"),
    ("low", "high"),
)


def with_pairs(listing: Listing, pair: str) -> Listing:
    """Return the pictures to learn of a listing, with the picture given beside each.

    Args:
        listing: Pictures.
        pair: A folder or archive of the pictures given; "auto" for two folders in the listing that are named input
            and target (or a like pair of names); "none".

    Raises:
        DataError: No picture has a partner, or `pair` is not there.
    """
    if pair == "none" or listing.partner is not None:
        return listing
    if pair != "auto":
        return _match(listing, _other(Path(pair).expanduser()))
    folders = {name.split("/")[0] for name in listing.names if "/" in name}
    for given, wanted in _FOLDERS:
        named = {folder.lower(): folder for folder in folders}
        if set(named) == {wanted} and given in map(str.lower, listing.folders):
            raise DataError(
                f"{listing.where} has a folder {given!r} without pictures beside {named[wanted]!r}; put the pictures "
                f"given into it, or set data.pair=none."
            )
        if set(named) == {given, wanted} and all("/" in name for name in listing.names):
            return _match(_below(listing, named[wanted]), _below(listing, named[given]))
    return listing


def _other(path: Path) -> Listing:
    if path.is_dir():
        return list_folder(path)
    if path.suffix.lower() == ".zip" and path.is_file():
        return list_zip(path)
    raise DataError(f"there is no folder or .zip {path} of pictures to pair (data.pair).")


def _below(listing: Listing, folder: str) -> Listing:
    """Return the part of a listing in one of its folders, by names that begin there."""
    start = f"{folder}/"

    def cut(names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(name.removeprefix(start) for name in names if name.startswith(start))

    return replace(
        listing,
        where=f"{folder} of {listing.where}",
        names=cut(listing.names),
        others=cut(listing.others),
        open=lambda name: listing.open(start + name),
    )


def _match(targets: Listing, sources: Listing) -> Listing:
    """Pair pictures whose paths agree but for their suffixes."""
    found = {stem(name): name for name in sources.names}
    names = tuple(name for name in targets.names if stem(name) in found)
    if not names:
        raise DataError(
            f"no picture of {targets.where} has one of the same name in {sources.where} (first: "
            f"{PurePosixPath(targets.names[0]).name} and {PurePosixPath(sources.names[0]).name}); name them alike, or "
            f"set data.pair=none."
        )
    alone = len(targets.names) + len(sources.names) - 2 * len(names)
    left_out = f"; warning: {alone} picture(s) without a partner were left out" if alone else ""
    return replace(
        targets,
        names=names,
        partner=lambda name: sources.open(found[stem(name)]),
        notes=(*targets.notes, f"pairs: {targets.where} is learnt, given {sources.where}{left_out}"),
    )
