"""Read or change what happens inside a network, by the names of its blocks.

    with capture(network, ["mid"], stop_after="mid") as taken:
        network(x, level, cond)          # ends after "mid"
    taken["mid"]

Works on our networks (`network.blocks`), on those of diffusers (`DiffusersNetwork.blocks`) and on any `nn.Module` by
the names of its submodules. `block_maps.block_map` turns what a block returned into a map on the data's axes. Hooks are
removed on exit, also after an error. Give the network itself, not one wrapped by `torch.compile`; compiled blocks
(`compile_blocks`) run their own code while anyone listens.

A block's name followed by ".attention" means its attention weights (B, heads, queries, keys), softmax already taken:
"mid.attention" of a U-Net (for video B is clips times frames; "mid.temporal.attention" is among frames, with B clips
times positions), "block0.attention" of a transformer. ".cross" means those of its attention to a condition's tokens, of
which the first of each condition is its null: "mid.cross". With `inputs` it means the scores before the softmax.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from difflib import get_close_matches
from typing import Any

from torch import nn
from torch.nn.modules.module import _has_any_global_hook

from undiffuse.networks.attention import CrossAttention, SelfAttention
from undiffuse.networks.compilation import eager_blocks


def direct(module: nn.Module) -> Callable[..., Any]:
    """Return what a call of `module` comes to: its `forward`, unless hooks listen to its calls or it is compiled.

    torch looks for hooks at each call, which takes longer than a denoiser that has a closed form. Hooks of the parts
    inside are heard as ever; one that is put on `module` itself later is not.
    """
    listened = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    heard = any(getattr(module, name) for name in listened) or _has_any_global_hook()
    return module if heard or module._compiled_call_impl is not None else module.forward


class _StopForward(Exception):
    """Raised by a hook to end the forward pass of the `capture` that owns it."""

    def __init__(self, owner: object) -> None:
        super().__init__("the forward pass was ended by capture(stop_after=..., stop_when_full=...)")
        self.owner = owner


@contextmanager
def capture(
    network: nn.Module,
    names: Iterable[str],
    *,
    stop_after: str | None = None,
    stop_when_full: bool = False,
    inputs: bool = False,
) -> Iterator[dict[str, Any]]:
    """Collect what named blocks return (or, with `inputs`, their first argument) while the body runs.

    Values are kept as they are: attached to the graph where gradients are on, the last one where a block
    runs more than once, and changed ones where `edit` was entered before.

    Args:
        network: Network that holds the blocks.
        names: Names of blocks, or of their attention.
        stop_after: End the body silently once this block has run: nothing behind it is computed, and the
            statements after the network's call are skipped.
        stop_when_full: End it so once all of `names` were taken, each for the first time.
        inputs: Collect inputs instead of outputs.

    Yields:
        A dictionary that fills while the body runs: name -> value.

    Raises:
        ValueError: A name is unknown.
    """
    taken: dict[str, Any] = {}
    places = {name: find_block(network, name) for name in names}
    last = None if stop_after is None else find_block(network, stop_after)
    wanted = len(places) if stop_when_full else None
    with ExitStack() as stack:
        stack.enter_context(eager_blocks())
        for name, block in places.items():
            _attach(stack, block, _keeper(taken, name, wanted), inputs=inputs)
        if last is not None:  # attached last, so that the block's own value is taken before
            _attach(stack, last, _stopper(taken), inputs=False)
        try:
            yield taken
        except _StopForward as stop:
            if stop.owner is not taken:
                raise


@contextmanager
def edit(network: nn.Module, changes: Mapping[str, Callable[[Any], Any]], *, inputs: bool = False) -> Iterator[None]:
    """Replace what named blocks return by `changes[name](output)` while the body runs.

    With `inputs`, their first argument is replaced before they run.

    Raises:
        ValueError: A name is unknown.
    """
    places = {name: find_block(network, name) for name in changes}
    with ExitStack() as stack:
        stack.enter_context(eager_blocks())
        for name, block in places.items():
            _attach(stack, block, changes[name], inputs=inputs)
        yield


def find_block(network: nn.Module, name: str) -> nn.Module:
    """Return the block, the attention weights of a block, or the submodule called `name`.

    Raises:
        ValueError: There is none; the message names the nearest.
    """
    blocks = getattr(network, "blocks", None)
    named = dict(blocks.items()) if isinstance(blocks, Mapping | nn.ModuleDict) else {}
    named |= _attention_of(named)
    submodules = dict(network.named_modules())
    for places in (named, submodules):
        if name and name in places:
            return places[name]
    known = list(named) or [module for module in submodules if module]
    nearest = get_close_matches(name, [*known, *submodules], n=1, cutoff=0.0)
    listed = ", ".join(known[:20]) + (", ..." if len(known) > 20 else "")
    raise ValueError(f"block {name!r} does not exist; did you mean {nearest[0]!r}? The blocks are {listed}.")


def _attention_of(blocks: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Return the attention weights of those blocks that have one self- or cross-attention, as "<block>.attention" and
    "<block>.cross".
    """
    weights: dict[str, nn.Module] = {}
    for kind, suffix in ((SelfAttention, "attention"), (CrossAttention, "cross")):
        for name, block in blocks.items():
            found = [module for module in block.modules() if isinstance(module, kind)]
            if len(found) == 1:
                weights[f"{name}.{suffix}"] = found[0].weights
    return weights


def _attach(stack: ExitStack, block: nn.Module, change: Callable[[Any], Any], *, inputs: bool) -> None:
    """Hook `change` (value -> new value, None for no change) to a block until `stack` closes."""
    if inputs:
        handle = block.register_forward_pre_hook(_first_argument_hook(change), with_kwargs=True)
    else:
        handle = block.register_forward_hook(lambda module, args, output: _changed(change, module, output))
    stack.callback(handle.remove)


def _changed(change: Callable[[Any], Any], module: nn.Module, output: Any) -> Any:
    """Return the changed output, None for no change; of several outputs the one that the block calls its main."""
    main = getattr(module, "main_output", None)
    if main is None or not isinstance(output, tuple):
        return change(output)
    value = change(output[main])
    return None if value is None else (*output[:main], value, *output[main + 1 :])


def _first_argument_hook(change: Callable[[Any], Any]) -> Callable[..., tuple[Any, Any] | None]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
        if args:
            value = change(args[0])
            return None if value is None else ((value, *args[1:]), kwargs)
        name = next(iter(kwargs))
        value = change(kwargs[name])
        return None if value is None else (args, kwargs | {name: value})

    return hook


def _keeper(taken: dict[str, Any], name: str, wanted: int | None) -> Callable[[Any], None]:
    """Return what keeps a block's value, and ends the forward pass where that makes `wanted` values."""

    def keep(value: Any) -> None:
        taken[name] = value
        if len(taken) == wanted:
            raise _StopForward(taken)

    return keep


def _stopper(owner: object) -> Callable[[Any], None]:
    def stop(value: Any) -> None:
        raise _StopForward(owner)

    return stop
