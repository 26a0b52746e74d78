"""`Model`: a denoiser or flow map with a description of its data and good defaults; what users hold in their hands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from undiffuse.codecs.codec import Codec
from undiffuse.denoisers.base import Denoiser
from undiffuse.denoisers.elbo import Bound, elbo
from undiffuse.denoisers.flow_map import FlowMap
from undiffuse.denoisers.network_flow_map import as_denoiser
from undiffuse.events import Advanced, Finished, Listener, Started, silent
from undiffuse.models.conditions import fit_conditions, fit_tokens
from undiffuse.models.guided import ClassifierTarget, Wrap, apply_wraps, read_guidance
from undiffuse.models.jumping import jumping
from undiffuse.models.tuned import warn_of_other_sampler
from undiffuse.networks.backbone import Backbone
from undiffuse.networks.compilation import compile_blocks
from undiffuse.noise import KeyedNoise
from undiffuse.process.categorical import CategoricalProcess
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.process.grids import make_grid, uniform_grid
from undiffuse.sampling.constraints import Constraint
from undiffuse.sampling.flow_map import Jumps, default_solver, jump_grid
from undiffuse.sampling.loop import SampleResult, Snapshot, sample
from undiffuse.sampling.registry import make_solver
from undiffuse.sampling.solver import Solver
from undiffuse.spec import DataSpec

_STEPS = 25
_BATCH = 256


class Model:
    """A denoiser or flow map, its `DataSpec`, and declarative defaults of sampling.

    With a codec the denoiser works on latents: samples are decoded before anybody sees them, and only what is said to
    be in model units (`sample_result`, `start`, constraints) means the latents.

    Args:
        denoiser: The bare denoiser or flow map; guidance and other wrappers are added per call, never stored.
        spec: Kind, shape and units of the data, not of the latents.
        defaults: "solver", "steps", "grid", "guidance": used where a call does not say.
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
        return replace(self.state_spec, shape=self._shape(size))

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
        network = getattr(self.module, "backbone", None)
        if not isinstance(network, Backbone):
            raise ValueError(f"{type(self.module).__name__} has no network with named blocks to compile.")
        compile_blocks(network)
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
        grid: str | Tensor | None = None,
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
            grid: Name of a spacing, or the times themselves.
            prefix: Tokens only: text or ids that every sample begins with.
            options: Further arguments of `sample_result`.

        Raises:
            ValueError: Unknown names, conditions that the model does not know, or values out of range.
            PlanError: Solver, grid and process do not fit.
        """
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
        guidance: float | None = None,
        guidance_interval: tuple[float, float] | None = None,
        guidance_rescale: float | None = None,
        solver: str | Solver | None = None,
        steps: int | None = None,
        grid: str | Tensor | None = None,
        prefix: str | Sequence[int] | Tensor | None = None,
        first: int = 0,
        batch_size: int = _BATCH,
        negative: dict[str, Any] | None = None,
        autoguide: Model | Denoiser | None = None,
        classifier: ClassifierTarget | None = None,
        threshold: Literal["static", "dynamic", "none"] | None = None,
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
    ) -> SampleResult:
        """As `sample`, but in model units, with the number of evaluations and, where asked for, the trajectory.

        Args:
            guidance_interval: (low, high] in sigma / alpha: guide only there.
            guidance_rescale: Share of the guided mean that is scaled back to the spread of the conditional one.
            first: Number of the first sample: first=64 goes on where n=64 ended.
            batch_size: Samples computed at once; changes nothing but memory and speed.
            negative: Conditions to move away from, instead of from the null: as in `cond`.
            autoguide: A weaker model of the same data, to move away from instead of from the null; with `negative` it
                is told that. `guidance` is the scale of either.
            classifier: Pulls samples to a class; see `ClassifierTarget`.
            threshold: Bounds every answer to [-1, 1]: "static", "dynamic", or "none" against a default.
            wrap: A wrapper, or several in the order in which they go around the denoiser, the first innermost. They
                come before what the arguments above ask for, which goes around in the order of the arguments.
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
        """
        if n < 1 or batch_size < 1:
            raise ValueError(f"n={n} and batch_size={batch_size} must be at least 1.")
        if n > batch_size and (constraints or start is not None):
            raise ValueError(f"constraints and start hold for one batch; n={n} needs batch_size >= {n}.")
        if parallel is not None and (negative or classifier):
            raise ValueError("parallel repeats the batch; negative and classifier belong to single samples: omit one.")
        at_once: dict[str, Any] = {"parallel": parallel, "parallel_tol": parallel_tol}
        rule = self._solver(solver, steps, solver_options or {})
        times = self._grid(rule, grid, steps)
        warn_of_other_sampler(self, {"solver": solver, "steps": steps, "grid": grid, "guidance": guidance})
        spec = self.state_spec_at(size)
        conditions = fit_conditions(cond, n, spec, self.device)
        begun = start if prefix is None else fit_tokens(prefix, self.spec, self.process, self.device)
        asked: dict[str, Any] = {"wrap": wrap, "constraints": constraints, "callback": callback, "negative": negative}
        asked |= {"autoguide": autoguide, "classifier": classifier, "threshold": threshold not in (None, "none")}
        asked |= {"parallel": parallel, "guidance_interval": guidance_interval, "guidance_rescale": guidance_rescale}
        jump = jumping(self.module, rule, guidance, asked)
        wrapped: Any = apply_wraps(self.denoiser, wrap) if jump is None else None
        guided = read_guidance(
            self,
            n,
            conditions,
            guidance=guidance,
            guidance_interval=guidance_interval,
            guidance_rescale=guidance_rescale,
            negative=negative,
            autoguide=autoguide,
            classifier=classifier,
            threshold=threshold,
        )
        self.module.eval()
        listener(Started("sample", n, "sample"))
        parts: list[SampleResult] = []
        for low in range(0, n, batch_size):
            high = min(low + batch_size, n)
            walk = partial(sample, solver=rule, constraints=constraints, callback=callback, **at_once)
            draw = jump or partial(walk, guided.rows(low, high).wrap(wrapped))
            part = draw(
                noise=KeyedNoise(seed, range(first + low, first + high), self.device),
                shape=spec.shape,
                grid=times,
                cond=conditions.rows(low, high) or None,
                start=begun.expand(high - low, *begun.shape[1:]) if prefix is not None and begun is not None else begun,
                dtype=dtype,
                trajectory=trajectory,
            )
            parts.append(part)
            listener(Advanced("sample", high))
        listener(Finished("sample"))
        return _join(parts)

    def elbo(self, tokens: Tensor, draws: int = 8, seed: int = 0, batch_size: int = 64) -> Bound:
        """Return the evidence bound of token ids (N, L) with its standard error, nats per token.

        Raises:
            ValueError: The model is not of tokens, or an id is unknown.
        """
        parts = [
            elbo(self.denoiser, rows.to(self.device), KeyedNoise(seed, range(low, low + len(rows)), self.device), draws)
            for low, rows in ((i, tokens[i : i + batch_size]) for i in range(0, len(tokens), batch_size))
        ]
        sizes = torch.tensor([min(batch_size, len(tokens) - i) for i in range(0, len(tokens), batch_size)]).double()
        means = torch.tensor([part.mean for part in parts]).double()
        errors = torch.tensor([part.standard_error for part in parts]).double()
        share = sizes / sizes.sum()
        return Bound(float((share * means).sum()), float(((share * errors) ** 2).sum().sqrt()))

    def text(self, tokens: Tensor) -> list[str]:
        """Return the text of token ids (N, L)."""
        from undiffuse.data.text import decode_text

        return [decode_text(row, self.spec) for row in tokens.cpu()]

    def save(self, folder: str | Path) -> Path:
        """Write model.safetensors, config.json and README.md into `folder`, atomically, and return it."""
        from undiffuse.models.bundle import save_model

        return save_model(self, Path(folder))

    @torch.no_grad()
    def _decoded(self, x: Tensor, batch_size: int) -> Tensor:
        if self.codec is None:
            return self.decode(x)
        return torch.cat([self.decode(rows) for rows in x.split(batch_size)])

    def _solver(self, solver: str | Solver | None, steps: int | None, options: dict[str, Any]) -> Solver:
        if isinstance(solver, Solver):
            if options:
                raise ValueError("solver_options belong to a solver given by name; this one is built already.")
            return solver
        name = solver or self.defaults.get("solver") or self._default_solver()
        if name == "first-hitting":
            options = {"steps": self._steps(steps), **options}
        return make_solver(name, **options)

    def _default_solver(self) -> str:
        if isinstance(self.module, FlowMap):
            return default_solver(self.module)
        return "first-hitting" if self.spec.is_discrete else "dpm++2m"

    def _shape(self, size: Sequence[int] | None) -> tuple[int, ...]:
        """Return the shape of one state for images of so many pixels; that of the spec by default."""
        shape = self.state_spec.shape
        if size is None:
            return shape
        if self.spec.kind != "image":
            raise ValueError(f"size={tuple(size)} is for images; this model makes {self.spec.kind} data. Leave it out.")
        factor = max(1, self.spec.shape[-1] // shape[-1])  # pixels per latent
        options = getattr(getattr(self.module, "backbone", None), "options", None)
        stride = factor * getattr(options, "patch", 1)
        if len(size) != 2 or any(side < 1 or side % stride for side in size):
            known = f" The model was trained on {_sizes(self.spec.sizes)}." if self.spec.sizes else ""
            raise ValueError(
                f"size={tuple(size)} does not fit; give height and width, each a multiple of {stride} pixels.{known}"
            )
        return (shape[0], size[0] // factor, size[1] // factor)

    def _steps(self, steps: int | None) -> int | None:
        return steps if steps is not None else self.defaults.get("steps")

    def _grid(self, solver: Solver, grid: str | Tensor | None, steps: int | None) -> Tensor | None:
        """Return the times to walk; None for solvers that draw their own."""
        process = self.process
        if grid is not None and solver.draws_times and (solver.discrete or not isinstance(grid, Tensor)):
            raise ValueError(f"{type(solver).__name__} draws its own times; leave the grid out.")
        if isinstance(grid, Tensor):
            if steps is not None:
                raise ValueError(f"steps={steps} was given beside a grid, which has its own; leave one out.")
            return grid
        if solver.draws_times:
            if steps is not None and not solver.discrete:
                name = type(solver).__name__
                raise ValueError(f"steps={steps}, but {name} chooses its own; leave steps out and set rtol.")
            return None
        count = self._steps(steps)
        shape: Any = grid or self.defaults.get("grid")
        if isinstance(solver, Jumps) and isinstance(self.module, FlowMap):
            return jump_grid(self.module, count or 1, shape or "t")
        if isinstance(process, GaussianProcess):
            shape = shape or "logsnr"
            return make_grid(process.schedule, _STEPS if count is None else count, shape)
        if grid not in (None, "t"):
            raise ValueError(f"grid={grid!r} is a spacing in noise level, which tokens do not have; leave it out.")
        return uniform_grid(self.spec.shape[0] if count is None else count)


def _sizes(sizes: Sequence[tuple[int, int]], most: int = 8) -> str:
    shown = ", ".join(f"{height}x{width}" for height, width in sizes[:most])
    return shown + (", ..." if len(sizes) > most else "")


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
