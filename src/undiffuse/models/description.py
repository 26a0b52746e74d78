"""A denoiser or flow map as plain JSON, and back: everything about it but its weights."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, get_args

from undiffuse.denoisers.base import Denoiser
from undiffuse.denoisers.categorical import CategoricalDenoiser
from undiffuse.denoisers.causal import token_denoiser
from undiffuse.denoisers.flow_map import FlowMap
from undiffuse.denoisers.network import NetworkDenoiser
from undiffuse.denoisers.network_flow_map import NetworkFlowMap
from undiffuse.denoisers.shift import ShiftedDenoiser
from undiffuse.denoisers.timestep import network_denoiser
from undiffuse.errors import CheckpointError
from undiffuse.networks.build import build_network
from undiffuse.networks.options import NetworkOptions
from undiffuse.process.categorical import CategoricalProcess
from undiffuse.process.gaussian import GaussianProcess
from undiffuse.process.keep import keep_from_json, keep_to_json
from undiffuse.process.registry import schedule_from_json, schedule_to_json
from undiffuse.spec import DataSpec

_FLOW_MAP = ("spans", "start", "end", "guided")
_VARIANCE = "learned_variance"  # written only where it is true, so that older versions read what they understand
_EVIDENCE_FREE = "evidence_free"  # likewise
_SOURCE = "source"  # of a shifted denoiser alone
_NETWORKS: dict[str, type[Any]] = {options.kind: options for options in get_args(NetworkOptions)}


def denoiser_to_json(denoiser: Denoiser | FlowMap) -> dict[str, Any]:
    """Return "network", "process" and "parametrisation" of a denoiser that was built from options; of a flow map also
    "flow_map", which says what was trained.

    Raises:
        TypeError: The denoiser is a wrapper, or its network was built by hand.
    """
    if isinstance(denoiser, NetworkFlowMap):
        trained = {key: getattr(denoiser, key) for key in _FLOW_MAP}
        return {**denoiser_to_json(denoiser.denoiser), "flow_map": trained}
    if not isinstance(denoiser, (NetworkDenoiser, CategoricalDenoiser)):
        raise TypeError(
            f"{type(denoiser).__name__} cannot be saved; save the network's own denoiser, without wrappers."
        )
    options = getattr(denoiser.backbone, "options", None)
    if options is None:
        raise TypeError(
            "this network was built by hand, so its shape cannot be saved; build it with build_network(options)."
        )
    if isinstance(denoiser, NetworkDenoiser):
        parametrisation: dict[str, Any] = {"prediction": denoiser.prediction, "data_std": denoiser.data_std}
        parametrisation |= {_VARIANCE: True} if denoiser.learns_variance else {}
        parametrisation |= {_SOURCE: denoiser.source} if isinstance(denoiser, ShiftedDenoiser) else {}
    else:
        parametrisation = {"time_dependent": denoiser.time_dependent}
        parametrisation |= {_EVIDENCE_FREE: True} if denoiser.evidence_free else {}
    return {
        "network": asdict(options),
        "process": process_to_json(denoiser.process),
        "parametrisation": parametrisation,
    }


def denoiser_from_json(fields: dict[str, Any], spec: DataSpec) -> Denoiser | FlowMap:
    """Build the denoiser or flow map, with fresh weights.

    Raises:
        CheckpointError: The network kind is unknown.
    """
    options = dict(fields["network"])
    if options.get("kind") not in _NETWORKS:
        raise CheckpointError(f"network {options.get('kind')!r} is unknown to this version; update undiffuse.")
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    process = process_from_json(fields["process"])
    states = process.states if isinstance(process, CategoricalProcess) else None
    parametrisation = dict(fields["parametrisation"])
    variance = parametrisation.pop(_VARIANCE, False)
    network = build_network(_NETWORKS[options["kind"]](**values), spec, states=states, variance=variance)
    if isinstance(process, CategoricalProcess):
        return token_denoiser(network, process, spec=spec, **parametrisation)
    denoiser = network_denoiser(network, process, spec=spec, **parametrisation)
    return NetworkFlowMap(denoiser, **fields["flow_map"]) if fields.get("flow_map") else denoiser


def process_to_json(process: GaussianProcess | CategoricalProcess) -> dict[str, Any]:
    """Return a process as plain JSON types."""
    if isinstance(process, GaussianProcess):
        return {"kind": "gaussian", "schedule": schedule_to_json(process.schedule), "source": process.source}
    return {
        "kind": "categorical",
        "corruption": process.kind,
        "classes": process.classes,
        "keep": keep_to_json(process.keep),
        "mask_share": process.mask_share,
        "blocks": list(process.blocks),
    }


def process_from_json(fields: dict[str, Any]) -> GaussianProcess | CategoricalProcess:
    """Rebuild a process from `process_to_json`."""
    if fields["kind"] == "gaussian":
        return GaussianProcess(schedule_from_json(fields["schedule"]), fields["source"])
    return CategoricalProcess(
        fields["corruption"],
        fields["classes"],
        keep_from_json(fields["keep"]),
        fields["mask_share"],
        tuple(fields.get("blocks", ())),
    )
