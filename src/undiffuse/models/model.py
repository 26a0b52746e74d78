"""`Model`: a denoiser or flow map with a description of its data and good defaults; what users hold in their hands."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import torch
from torch import Tensor

from undiffuse.codecs.codec import Codec
from undiffuse.codecs.quantised import check_codebook
from undiffuse.denoisers.base import Denoiser
from undiffuse.denoisers.elbo import Bound, summarise, token_bounds
from undiffuse.denoisers.flow_map import FlowMap
from undiffuse.denoisers.network_flow_map import as_denoiser
from undiffuse.events import Advanced, Finished, Listener, Started, silent
from undiffuse.limits import check_counts
from undiffuse.models.budget import read_budget
from undiffuse.models.choosing import grid_of, shape_of, solver_of
from undiffuse.models.conditions import fit_conditions, fit_tokens
from undiffuse.models.guided import GUIDANCE_ARGUMENTS, GuidanceArguments, Wrap, apply_wraps, read_guidance
from undiffuse.models.jumping import jumping
from undiffuse.models.scheduled import setup_of
from undiffuse.models.states import refuse_states
from undiffuse.models.tuned import warn_of_other_sampler
from undiffuse.models.windows import Draw, sliding, spec_of_length, window_of
from undiffuse.networks.backbone import Backbone
from undiffuse.noise import KeyedNoise
from undiffuse.process.categorical import CategoricalProcess
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.sampling.constraints import Constraint
from undiffuse.sampling.loop import SampleResult, Snapshot, sample
from undiffuse.sampling.solver import Solver
from undiffuse.spec import DataSpec
from undiffuse.words import did_you_mean

if TYPE_CHECKING:
    from undiffuse.sampling.diffusers_setup import DiffusersSetup

_BATCH = 256


class Model:
    """A denoiser or flow map, its `DataSpec`, and declarative defaults of sampling.

    With a codec the denoiser works on latents: samples are decoded before anybody sees them, and only what is said to
    be in model units (`sample_result`, `start`, constraints) means the latents.

    Args:
        denoiser: The bare denoiser or flow map; guidance and other wrappers are added per call, never stored.
        spec: Kind, shape and units of the data, not of the latents.
        defaults: "solver", "steps", "grid", "guidance": used where a call does not say; "scheduler", of diffusers,
            where neither says a solver or a grid (`undiffuse.models.scheduled`).
        info: Anything worth keeping beside the weights: recipe, metrics.
        codec: What encodes data for the denoiser and decodes its samples.

    Attributes:
        module: The denoiser or flow map as it is saved; `denoiser` is always a denoiser.
    """

    def __init__(
        self,
        denoiser: Denoiser | FlowMap,
        spec: DataSpec,
        defaults: dict[str, Any] | None = None,
        info: dict[str, Any] | None = None,
        codec: Codec | None = None,
    ) -> None:
        check_codebook(denoiser.spec, codec)
        self.module = denoiser
        self.spec = spec
        self.defaults = dict(defaults or {})
        self.info = dict(info or {})
        self.codec = codec

    def __repr__(self) -> str:
        classes = f", {len(self.spec.classes)} classes" if self.spec.classes else ""
        what = "flow map, " if isinstance(self.module, FlowMap) else ""
        return f"Model({what}{self.spec.kind} {self.spec.shape}{classes}, {self.parameters / 1e6:.2f} M parameters)"

    @property
    def denoiser(self) -> Denoiser:
        """The denoiser; of a flow map the one on its diagonal.

        Raises:
            ValueError: The model is a flow map that was not trained to denoise.
        """
        return as_denoiser(self.module)

    @property
    def process(self) -> GaussianProcess | CategoricalProcess:
        """How data turned into noise."""
        return self.module.process

    @property
    def parameters(self) -> int:
        """Number of trained numbers."""
        return sum(p.numel() for p in self.module.parameters())

    @property
    def state_spec(self) -> DataSpec:
        """What the denoiser works on: the latents where there is a codec, else the data."""
        return self.spec if self.codec is None else self.codec.latent

    def state_spec_at(self, size: Sequence[int] | None) -> DataSpec:
        """Return `state_spec` for images of `size` (height, width) in pixels; as it is where that is None."""
        return replace(self.state_spec, shape=shape_of(self, size))

    def encode(self, data: Tensor) -> Tensor:
        """Map data units (n, *spec.shape) to the denoiser's model units (n, *state_spec.shape)."""
        x = self.spec.to_model(data.to(self.device))
        return x if self.codec is None else self.codec.encode(x)

    def decode(self, x: Tensor) -> Tensor:
        """Map the denoiser's model units (n, *state_spec.shape) to data units (n, *spec.shape)."""
        return self.spec.from_model(x if self.codec is None else self.codec.decode(x))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next((p.device for p in self.module.parameters()), torch.device("cpu"))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Model:
        """Move the weights to a device, or to a dtype, and return the model itself."""
        self.module.to(device=device, dtype=dtype)
        if self.codec is not None:
            self.codec.to(device=device, dtype=dtype)
        return self

    def compile(self) -> Model:
        """Compile the network's blocks, for faster sampling after a first slow batch, and return the model itself.

        Move the model to its device before. Numbers change in the last bits. Where nothing can be compiled there is a
        warning, and the model runs as it is.

        Raises:
            ValueError: The denoiser has no network with named blocks.
        """
        network = self._network
        if not isinstance(network, Backbone):
            raise ValueError(f"{type(self.module).__name__} has no network with named blocks to compile.")
        network.compile_network()
        return self

    def sample(
        self,
        n: int = 1,
        *,
        seed: int = 0,
        cond: dict[str, Any] | None = None,
        guidance: float | None = None,
        solver: str | Solver | None = None,
        steps: int | None = None,
        grid: str | Tensor | Sequence[float] | None = None,
        prefix: str | Sequence[int] | Tensor | None = None,
        **options: Any,
    ) -> Tensor:
        """Return `n` samples in data units (n, *shape); for tokens the ids, int64 (n, L).

        Sample i of a seed is the same whatever `n` and the batch size are. Without `cond` the samples are unconditional
        (the command `undiffuse sample` lets classes take turns instead).

        Args:
            n: How many.
            seed: Any integer.
            cond: Conditions, e.g. {"label": 3}, {"label": "cat"}, {"caption": "a red square"}, or one value per sample;
                see `undiffuse.models.conditions.fit_conditions`.
            guidance: Classifier-free guidance scale; 1 is conditional without guidance.
            solver: Name (see `undiffuse.sampling.SOLVERS`) or a solver.
            steps: Number of steps.
            grid: Name of a spacing, or the times themselves, falling: a list or a tensor.
            prefix: Tokens only: text or ids that every sample begins with.
            options: Further arguments of `sample_result`.

        Raises:
            ValueError: Unknown names, conditions that the model does not know, values out of range, or a grid that ends
                at noisy states.
            PlanError: Solver, grid and process do not fit.
        """
        refuse_states(self, grid)
        result = self.sample_result(
            n, seed=seed, cond=cond, guidance=guidance, solver=solver, steps=steps, grid=grid, prefix=prefix, **options
        )
        return self._decoded(result.x, options.get("batch_size", _BATCH))

    def sample_result(
        self,
        n: int = 1,
        *,
        seed: int = 0,
        cond: dict[str, Any] | None = None,
        solver: str | Solver | None = None,
        steps: int | None = None,
        grid: str | Tensor | Sequence[float] | None = None,
        prefix: str | Sequence[int] | Tensor | None = None,
        length: int | None = None,
        stride: int | None = None,
        first: int = 0,
        batch_size: int = _BATCH,
        tokens_per_call: int | None = None,
        wrap: Wrap | Sequence[Wrap] | None = None,
        constraints: Sequence[Constraint] = (),
        start: Tensor | None = None,
        size: Sequence[int] | None = None,
        dtype: torch.dtype = torch.float32,
        trajectory: bool = False,
        callback: Callable[[Snapshot], None] | None = None,
        listener: Listener = silent,
        solver_options: dict[str, Any] | None = None,
        parallel: int | None = None,
        parallel_tol: float = 0.1,
        **guides: Unpack[GuidanceArguments],
    ) -> SampleResult:
        """As `sample`, but in model units, with the number of evaluations and, where asked for, the trajectory.

        Args:
            length: Texts: tokens of a sample, where they are not those of the training. Longer ones are written window
                by window; see `undiffuse.models.windows`.
            stride: New tokens per window there; None: half of it.
            first: Number of the first sample: first=64 goes on where n=64 ended.
            batch_size: Samples computed at once; changes nothing but memory and speed.
            tokens_per_call: Most masks that open with one evaluation; takes `token-budget`.
            wrap: A wrapper, or several in the order in which they go around the denoiser, the first innermost. They
                come before what `guides` ask for, which goes around in the order of its arguments.
            constraints, start: See `undiffuse.sampling.sample`; they hold for all n and so need n <= batch_size.
            size: Images: height and width in pixels; None takes that of the spec. Networks of convolutions and of
                rotary positions take others; what they were trained on is in `spec.sizes`.
            dtype: Of the state.
            trajectory: Keep the states at all grid times.
            callback: Called after each evaluation.
            listener: Hears about progress.
            solver_options: Options of a solver given by name.
            parallel: Compute so many steps at once, in batches so many times as large; the result then says how many
                calls it took. See `undiffuse.sampling.parallel`.
            parallel_tol: When a step counts as final there, in units of its noise, for the worst sample of a batch: so
                above 0 a sample depends on its batch within this tolerance; 0 gives the sequential numbers.
            guides: guidance, guidance_interval, guidance_rescale, negative, autoguide, classifier, threshold,
                temperature, top_k, truncation, purity: see `undiffuse.models.guided.GuidanceArguments`.

        Raises:
            TypeError: An argument that there is not.
        """
        _check_names(guides)
        _check_batches(n, batch_size, bool(constraints) or start is not None)
        _check_together(parallel, guides, prefix, start)
        budget = read_budget(self.defaults, solver, tokens_per_call, guides.get("purity"))
        own = setup_of(self.defaults, shape_of(self, size))
        rule = solver_of(self, budget.solver, steps, {**budget.options, **(solver_options or {})}, own)
        times = grid_of(self, rule, grid, steps, own)
        said = {"solver": solver, "steps": steps, "grid": grid, "solver_options": solver_options}
        warn_of_other_sampler(self, said | {name: guides.get(name) for name in ("guidance", "threshold")})
        spec = spec_of_length(self.state_spec_at(size), length, getattr(self._network, "options", None))
        window = window_of(self.state_spec, length, stride, bool(constraints))
        conditions = fit_conditions(cond, n, spec, self.device, self.codec)
        begun = None if prefix is None else fit_tokens(prefix, spec, self.process, self.device)
        asked = {"wrap": wrap, "constraints": constraints, "callback": callback, "parallel": parallel, **guides}
        jump = jumping(self.module, rule, asked)
        wrapped: Any = apply_wraps(self.denoiser, wrap) if jump is None else None
        guided = read_guidance(self, n, conditions, **guides)
        walk = partial(
            sample,
            solver=rule,
            constraints=constraints,
            callback=callback,
            parallel=parallel,
            parallel_tol=parallel_tol,
        )
        usual = times if grid is None and "grid" not in self.defaults else None  # the grid of the scheduler
        self.module.eval()
        listener(Started("sample", n, "sample"))
        parts: list[SampleResult] = []
        for low in range(0, n, batch_size):
            high = min(low + batch_size, n)
            noise = KeyedNoise(seed, range(first + low, first + high), self.device)
            state = start if begun is None else begun.expand(high - low, *begun.shape[1:])
            if state is None and own is not None and usual is not None:
                state = own.start(noise, spec.shape, usual, dtype)
            bounds = None if guides.get("threshold") else own
            draw: Draw = jump or partial(walk, _bounded(guided.rows(low, high).wrap(wrapped), bounds))
            if window is not None:
                draw = sliding(draw, self.process, window, stride)
            rows = conditions.rows(low, high) or None
            part = draw(
                noise=noise, shape=spec.shape, grid=times, cond=rows, start=state, dtype=dtype, trajectory=trajectory
            )
            parts.append(part)
            listener(Advanced("sample", high))
        listener(Finished("sample"))
        return _join(parts)

    def elbo(
        self,
        tokens: Tensor,
        draws: int = 8,
        seed: int = 0,
        batch_size: int = 64,
        *,
        cond: dict[str, Any] | None = None,
    ) -> Bound:
        """Return the evidence bound of token ids (N, L) with its standard error, nats per token.

        Args:
            tokens: Ids.
            draws: Noise draws of each row.
            seed: Of the noise.
            batch_size: Rows computed at once.
            cond: Conditions, one value for all rows or one for each, as in `sample`; None stands for every null.

        Raises:
            ValueError: The model is not of tokens, an id is unknown, rows are filled up with padding of the tokenizer,
                or the conditions do not fit.
        """
        from undiffuse.data.text import refuse_padding

        refuse_padding(tokens, self.spec)
        conditions, denoiser, parts = fit_conditions(cond, len(tokens), self.state_spec, self.device), self.denoiser, []
        for low in range(0, len(tokens), batch_size):
            rows = tokens[low : low + batch_size].to(self.device)
            noise = KeyedNoise(seed, range(low, low + len(rows)), self.device)
            embedded = denoiser.embed(conditions.rows(low, low + len(rows)) or None, len(rows))
            parts.append(token_bounds(denoiser, rows, noise, draws, cond=embedded))
        return summarise(torch.cat(parts, dim=1))

    def text(self, tokens: Tensor) -> list[str]:
        """Return the text of token ids (N, L)."""
        from undiffuse.data.text import decode_text

        return [decode_text(row, self.spec) for row in tokens.cpu()]

    def save(self, folder: str | Path) -> Path:
        """Write model.safetensors, config.json and README.md into `folder`, atomically, and return it."""
        from undiffuse.models.bundle import save_model

        return save_model(self, Path(folder))

    @property
    def _network(self) -> Any:
        """The network in the denoiser or flow map, where there is one."""
        return getattr(self.module, "backbone", None)

    @torch.no_grad()
    def _decoded(self, x: Tensor, batch_size: int) -> Tensor:
        if self.codec is None:
            return self.decode(x)
        return torch.cat([self.decode(rows) for rows in x.split(batch_size)])


def _check_names(guides: Any) -> None:
    """Refuse arguments that nothing takes."""
    for name in guides:
        if name not in GUIDANCE_ARGUMENTS:
            known = [*inspect.signature(Model.sample_result).parameters, *GUIDANCE_ARGUMENTS]
            raise TypeError(f"sample_result() got an unexpected argument {name!r}.{did_you_mean(name, known)}")


def _check_together(parallel: int | None, guides: Any, prefix: Any, start: Tensor | None) -> None:
    """Refuse arguments of which one leaves no room for the other."""
    if parallel is not None and (guides.get("negative") or guides.get("classifier")):
        raise ValueError("parallel repeats the batch; negative and classifier belong to single samples: omit one.")
    if prefix is not None and start is not None:
        raise ValueError("prefix and start both say what samples begin with; put the prefix into start.")


def _check_batches(n: int, batch_size: int, of_one: bool) -> None:
    """Refuse what are no numbers of samples, and several batches of what holds for one."""
    check_counts(n=n, batch_size=batch_size)
    if n > batch_size and of_one:
        raise ValueError(f"constraints and start hold for one batch; n={n} needs batch_size >= {n}.")


def _bounded(denoiser: Denoiser, own: DiffusersSetup | None) -> Denoiser:
    """Bound answers as the scheduler does that came with the model."""
    return denoiser if own is None else own.wrap(denoiser)


def _join(parts: list[SampleResult]) -> SampleResult:
    if len(parts) == 1:
        return parts[0]
    paths = [part.trajectory for part in parts if part.trajectory is not None]
    joined = torch.cat(paths, dim=1) if paths else None
    sweeps, calls = (
        None if parts[0].calls is None else sum(getattr(part, name) for part in parts) for name in ("sweeps", "calls")
    )
    x, nfe = torch.cat([part.x for part in parts]), max(part.nfe for part in parts)
    return SampleResult(x, nfe, joined, sweeps, calls)
