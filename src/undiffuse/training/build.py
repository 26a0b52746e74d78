"""From a recipe's options to a denoiser and its objective."""

from __future__ import annotations

from dataclasses import replace

from undiffuse.denoisers.base import Denoiser
from undiffuse.denoisers.categorical import CategoricalDenoiser
from undiffuse.denoisers.causal import token_denoiser
from undiffuse.denoisers.flow_map import FlowMap
from undiffuse.denoisers.network import NetworkDenoiser
from undiffuse.denoisers.network_flow_map import NetworkFlowMap
from undiffuse.denoisers.shift import SOURCE
from undiffuse.denoisers.timestep import network_denoiser
from undiffuse.distillation.build import make_flow_map_objective, make_student
from undiffuse.distillation.options import FlowMapOptions
from undiffuse.errors import ConfigError
from undiffuse.networks.build import build_network
from undiffuse.networks.options import PretrainedNetworkOptions
from undiffuse.pretrained.tuning import tuned_denoiser
from undiffuse.process.categorical import CategoricalProcess
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.process.grid_names import PUBLISHED
from undiffuse.process.grids import make_grid
from undiffuse.process.keep import make_keep
from undiffuse.process.options import CategoricalOptions, GaussianOptions
from undiffuse.process.registry import make_schedule
from undiffuse.sampling.registry import make_solver
from undiffuse.spec import DataSpec
from undiffuse.training.categorical import Autoregressive, CategoricalELBO, MaskedELBO, categorical_process
from undiffuse.training.degrade import told_spec
from undiffuse.training.denoising import gaussian_process, make_denoising, parametrisation
from undiffuse.training.objectives import Objective, Trained
from undiffuse.training.options import (
    AutoregressiveOptions,
    CategoricalELBOOptions,
    DenoisingOptions,
    MaskedELBOOptions,
)
from undiffuse.training.recipe import Recipe

ObjectiveOptions = (
    DenoisingOptions | MaskedELBOOptions | CategoricalELBOOptions | AutoregressiveOptions | FlowMapOptions
)


def make_process(options: GaussianOptions | CategoricalOptions, spec: DataSpec) -> GaussianProcess | CategoricalProcess:
    """Build the process for the data that `spec` describes."""
    if isinstance(options, GaussianOptions):
        return GaussianProcess(make_schedule(options.schedule, **options.schedule_options))
    blocks = tuple(spec.columns.values())
    keep = make_keep(options.keep, **options.keep_options)
    share = None if keep.has_masks else options.mask_share
    return CategoricalProcess(options.corruption, spec.categories, keep, share, blocks)


def check_sampler(recipe: Recipe) -> None:
    """Refuse a grid that the schedule of a recipe does not have, before anything is trained.

    Raises:
        ConfigError: It has none of that name, between those limits, or of so many steps.
    """
    chosen, process = recipe.sample, recipe.process
    if chosen.grid is None or isinstance(recipe.model, PretrainedNetworkOptions):
        return
    if not isinstance(process, GaussianOptions):
        return
    if chosen.grid == PUBLISHED and isinstance(recipe.objective, FlowMapOptions):
        raise ConfigError("sample: a flow map jumps and has no published grid; use sample.grid=t.")
    schedule, steps = make_schedule(process.schedule, **process.schedule_options), chosen.steps or 1
    try:
        if chosen.grid != PUBLISHED:
            make_grid(schedule, steps, chosen.grid)
        elif chosen.solver is not None:
            make_solver(chosen.solver).published_grid(schedule, steps)
    except ValueError as error:
        raise ConfigError(f"sample: {error}") from error


def build_denoiser(
    recipe: Recipe, spec: DataSpec, *, told: bool = False
) -> NetworkDenoiser | CategoricalDenoiser | NetworkFlowMap:
    """Build a freshly initialised denoiser, or the flow map that the objective trains, on the CPU.

    Its weights follow from `train.seed`.

    Args:
        recipe: Resolved recipe.
        spec: What the denoiser works on.
        told: Whether `spec` has the conditions that `recipe.data` adds already, as that of latents does.

    Raises:
        ConfigError: Network or process do not fit the data.
    """
    if spec.is_discrete != isinstance(recipe.process, CategoricalOptions):
        recipe_name = "text" if spec.is_discrete else "image or vector"
        raise ConfigError(f"process={recipe.process.kind} does not fit {spec.noun}; use recipe {recipe_name}.")
    spec = spec if told else told_spec(spec, recipe.data)
    process = make_process(recipe.process, spec)
    if isinstance(recipe.model, PretrainedNetworkOptions):
        return _tuned(recipe, recipe.model, process, spec)
    states = process.states if isinstance(process, CategoricalProcess) else None
    try:
        variance = isinstance(recipe.objective, DenoisingOptions) and recipe.objective.learn_variance
        network = build_network(recipe.model, spec, states=states, seed=recipe.train.seed, variance=variance)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if isinstance(process, CategoricalProcess):
        assert isinstance(recipe.process, CategoricalOptions)
        return token_denoiser(
            network,
            process,
            spec=spec,
            time_dependent=network.time_dependent,
            evidence_free=recipe.process.evidence_free,
        )
    assert isinstance(recipe.process, GaussianOptions)
    if isinstance(recipe.objective, DenoisingOptions) and recipe.objective.coupling == "optimal":
        process = replace(process, source="data")  # its noise is paired with data, so no score follows from the mean
    source = SOURCE if recipe.process.start == "source" else None
    predicted, data_std = recipe.process.prediction, recipe.process.data_std
    try:
        denoiser = network_denoiser(network, process, predicted, spec=spec, data_std=data_std, source=source)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if isinstance(recipe.objective, FlowMapOptions):
        return make_student(denoiser, recipe.objective, recipe.train.seed)
    return denoiser


def _tuned(
    recipe: Recipe, options: PretrainedNetworkOptions, process: GaussianProcess | CategoricalProcess, spec: DataSpec
) -> NetworkDenoiser:
    """Load the network of a pipeline and make it ready for training."""
    assert isinstance(process, GaussianProcess) and isinstance(recipe.process, GaussianOptions) and recipe.train.init
    predicted = recipe.process.prediction
    return tuned_denoiser(recipe.train.init, process, predicted, spec=spec, options=options, seed=recipe.train.seed)


def make_objective(options: ObjectiveOptions, denoiser: Trained, steps: int = 1) -> Objective:
    """Build the objective for a denoiser, or for a flow map.

    Args:
        options: Of the objective.
        denoiser: What it trains, as it starts.
        steps: Optimizer steps of the run, which some schedules of objectives follow.

    Raises:
        ConfigError: It does not fit the denoiser's process or data.
    """
    if isinstance(options, FlowMapOptions):
        assert isinstance(denoiser, FlowMap)
        return make_flow_map_objective(options, denoiser, steps)
    assert isinstance(denoiser, Denoiser)
    try:
        if isinstance(options, DenoisingOptions):
            process = gaussian_process(denoiser)
            _check_frames(options, denoiser)
            _check_variance(options, denoiser)
            _check_coupling(options, denoiser)
            kind, data_std = parametrisation(denoiser)
            return make_denoising(options, process.schedule, data_std, kind)
        categorical = categorical_process(denoiser)
    except ValueError as error:
        raise ConfigError(f"objective={options.kind}: {error}") from error
    if denoiser.causal != isinstance(options, AutoregressiveOptions):
        raise ConfigError(
            f"objective={options.kind} does not train this network; objective=autoregressive goes with "
            f"model.causal=true, the others without."
        )
    if isinstance(options, AutoregressiveOptions):
        return Autoregressive(drop=options.drop)
    if isinstance(options, CategoricalELBOOptions):
        return CategoricalELBO(
            options.levels,
            aux=options.aux,
            adaptive_aux=options.adaptive_aux,
            times=options.times,
            masked_weight=options.masked_weight,
            open_weight=options.open_weight,
            drop=options.drop,
        )
    if categorical.kind != "absorbing":
        raise ConfigError(
            f"objective=masked-elbo needs process.corruption=absorbing, not {categorical.kind}; use "
            f"objective=categorical-elbo."
        )
    return MaskedELBO(options.sampling, drop=options.drop)


def _check_variance(options: DenoisingOptions, denoiser: Denoiser) -> None:
    if options.learn_variance != getattr(denoiser, "learns_variance", False):
        given = "no variance head" if options.learn_variance else "a variance head, which would not be trained"
        raise ValueError(
            f"learn_variance={str(options.learn_variance).lower()}, but the network has {given}; build it with "
            f"build_network(..., variance={options.learn_variance})."
        )


def _check_coupling(options: DenoisingOptions, denoiser: Denoiser) -> None:
    conditions = {} if denoiser.spec is None else denoiser.spec.conditions
    others = sorted(name for name, part in conditions.items() if name != "label")
    if options.coupling == "optimal" and others:
        raise ValueError(
            f"coupling=optimal pairs noise within each class, but these data have other conditions "
            f"({', '.join(others)}), which noise would then depend on; use coupling=independent."
        )


def _check_frames(options: DenoisingOptions, denoiser: Denoiser) -> None:
    if options.p_async and (denoiser.spec is None or denoiser.spec.kind != "video"):
        raise ValueError(
            f"p_async={options.p_async} gives frames times of their own, but this data has no frames; set it to 0."
        )
