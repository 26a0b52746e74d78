"""Configs of diffusers' schedulers: read, walked at the same levels and timesteps, written back; what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.oracles.continuous import spec_mixture
from undiffuse.errors import PlanError
from undiffuse.guidance.thresholding import Thresholding
from undiffuse.process.tables import TableSchedule
from undiffuse.sampling.diffusers_setup import from_diffusers

diffusers = pytest.importorskip("diffusers")

SPACINGS = ("linspace", "leading", "trailing")
PLAIN = (
    "DDPM", "DDIM", "PNDM", "EulerDiscrete", "EulerAncestralDiscrete", "HeunDiscrete", "KDPM2Discrete", "LMSDiscrete",
    "DPMSolverMultistep", "UniPCMultistep", "DEISMultistep",
)  # fmt: skip
OTHERS = (
    "IPNDM", "DPMSolverSinglestep", "FlowMatchEulerDiscrete", "FlowMatchHeunDiscrete", "EDMEuler",
    "EDMDPMSolverMultistep", "CosineDPMSolverMultistep", "KDPM2AncestralDiscrete",
)  # fmt: skip
CURVED = {
    name: ("karras", "exponential", "beta")
    for name in (*PLAIN[3:], "DPMSolverSinglestep")
    if name != "EulerAncestralDiscrete"
}
TWICE = ("HeunDiscrete", "KDPM2Discrete", "KDPM2AncestralDiscrete", "FlowMatchHeunDiscrete")  # each level but the first
NEEDED = {"DPMSolverSinglestep": {"solver_order": 3, "lower_order_final": True}}  # else it changes its config by itself


def scheduler(name: str, **options: Any) -> Any:
    return getattr(diffusers, name + "Scheduler")(**{**NEEDED.get(name, {}), **options})


def theirs(name: str, made: Any, steps: int) -> list[float]:
    """Their timesteps, each level once: Heun, KDPM2 and PNDM ask some levels twice."""
    made.set_timesteps(steps)
    if name == "PNDM":
        return made._timesteps[::-1].tolist()
    times = made.timesteps.tolist()
    return times[::2] if name in TWICE else times


@pytest.mark.parametrize("steps", [1, 7, 20, 50, 999])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("name", PLAIN)
def test_timesteps_of_every_spacing_are_identical(name: str, spacing: str, steps: int) -> None:
    if name == "PNDM" and steps == 1:
        pytest.skip("it has no such run: its warm-up takes two")
    if name == "KDPM2Discrete" and steps == 1:
        pytest.skip("its set_timesteps fails for a single step")
    for offset in (0, 1):
        made = scheduler(name, timestep_spacing=spacing, steps_offset=offset)
        ours = from_diffusers(made).timesteps(steps)
        told = theirs(name, made, steps)
        # linspace of classes that do not round is float32 there
        assert ours == pytest.approx(told, abs=1e-9 if spacing != "linspace" else 1e-4), (ours[:3], told[:3])


@pytest.mark.parametrize("steps", [1, 7, 20, 50, 999])
@pytest.mark.parametrize("name", OTHERS)
def test_timesteps_of_other_families_are_identical(name: str, steps: int) -> None:
    if steps == 1 and name.startswith(("CosineDPM", "KDPM2")):
        pytest.skip("its only step is at the lowest level, or its set_timesteps fails")
    made = scheduler(name)
    ours, told = from_diffusers(made).timesteps(steps), theirs(name, made, steps)
    if name.startswith("CosineDPM"):  # it is told an angle, 2 / pi atan(sigma), where EDM tells log(sigma) / 4
        ours = [float(2 / torch.pi * torch.atan(torch.exp(torch.tensor(4 * time)))) for time in ours]
    assert ours == pytest.approx(told, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("name", ["LCM", "TCD"])
@pytest.mark.parametrize("options", [{}, {"original_inference_steps": 40, "num_train_timesteps": 500}])
def test_few_steps_are_those_of_the_training(name: str, options: dict[str, int]) -> None:
    made = scheduler(name, **options)
    setup = from_diffusers(made)
    for steps in (1, 2, 4, 7, 40):
        made.set_timesteps(steps)
        assert setup.timesteps(steps) == made.timesteps.tolist()
        times = (made.timesteps.double() + 1) / made.config.num_train_timesteps
        assert setup.grid(steps)[:-1].tolist() == pytest.approx(times.tolist(), abs=1e-9)
    again = from_diffusers({**setup.to_diffusers()})
    assert again.grid(4).tolist() == setup.grid(4).tolist() and again.solver == setup.solver
    with pytest.raises(ValueError, match="original_inference_steps"):
        setup.grid(51)


@pytest.mark.parametrize("steps", [1, 2, 3, 8])
def test_angles_of_scm_are_theirs(steps: int) -> None:
    made = scheduler("SCM")
    made.set_timesteps(steps, intermediate_timesteps=1.3 if steps == 2 else None)
    setup = from_diffusers(made)
    angles = made.timesteps.double()
    assert setup.timesteps(steps) == pytest.approx(angles[:-1].tolist(), abs=1e-6)
    assert setup.grid(steps).tolist() == pytest.approx((angles / (torch.pi / 2)).clamp(max=1).tolist(), abs=1e-6)


def levels(made: Any, name: str, steps: int) -> torch.Tensor:
    """Their levels rho, each once, without the end."""
    made.set_timesteps(steps)
    if name == "IPNDM":
        return (made.betas.double() / made.alphas.double())[:-1]
    sigmas = made.sigmas.double()
    sigmas = torch.cat([sigmas[:1], sigmas[1::2]])[:steps] if name in TWICE else sigmas[:-1]
    return sigmas / (1 - sigmas) if name.startswith("Flow") else sigmas


@pytest.mark.parametrize("steps", [2, 7, 50])
@pytest.mark.parametrize(("name", "curve"), [(n, c) for n in (*PLAIN[3:], *OTHERS) for c in ("", *CURVED.get(n, ()))])
def test_noise_levels_are_theirs(name: str, curve: str, steps: int) -> None:
    made = scheduler(name, **({f"use_{curve}_sigmas": True} if curve else {}))
    setup = from_diffusers(made)
    ours, told = setup.spacing.levels(setup.process.schedule, steps), levels(made, name, steps)
    assert len(ours) == len(told)
    # Their tables are float32, in which 1 - abar of the lowest entry, 1e-4, has three digits.
    torch.testing.assert_close(ours, told, rtol=4e-4, atol=0)
    grid = setup.grid(steps)
    rho = torch.exp(-setup.process.schedule.half_logsnr(grid[:-1]))
    torch.testing.assert_close(rho, ours[: len(rho)], rtol=1e-9, atol=0)  # beyond it, levels equal to the end


ROUND_TRIPS: list[tuple[str, dict[str, Any]]] = [
    ("DDPM", {"variance_type": "fixed_large", "clip_sample": False, "timestep_spacing": "trailing"}),
    ("DDPM", {"variance_type": "learned_range", "beta_schedule": "squaredcos_cap_v2"}),
    ("DDPM", {"beta_schedule": "sigmoid", "clip_sample_range": 2.0}),
    ("DDIM", {"set_alpha_to_one": False, "steps_offset": 1, "beta_schedule": "scaled_linear", "beta_end": 0.012}),
    ("DDIM", {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}),
    ("DDIM", {"thresholding": True, "clip_sample": False, "dynamic_thresholding_ratio": 0.99}),
    ("PNDM", {"skip_prk_steps": True, "steps_offset": 1}),
    ("EulerDiscrete", {"use_karras_sigmas": True, "final_sigmas_type": "sigma_min"}),
    ("EulerDiscrete", {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}),
    ("EulerAncestralDiscrete", {"timestep_spacing": "leading", "steps_offset": 1}),
    ("HeunDiscrete", {"use_exponential_sigmas": True}),
    ("KDPM2Discrete", {"beta_start": 0.0001, "beta_end": 0.02}),
    ("KDPM2AncestralDiscrete", {"use_karras_sigmas": True, "timestep_spacing": "trailing"}),
    ("LMSDiscrete", {"use_beta_sigmas": True, "prediction_type": "sample"}),
    *(("DPMSolverMultistep", {"algorithm_type": a, "solver_order": o, "lower_order_final": low})
      for a in ("dpmsolver++", "sde-dpmsolver++") for o in (1, 2, 3) for low in (True, False)),
    ("DPMSolverMultistep", {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min", "solver_type": "heun"}),
    ("DPMSolverMultistep", {"thresholding": True, "use_karras_sigmas": True, "timestep_spacing": "leading"}),
    ("DPMSolverSinglestep", {"algorithm_type": "dpmsolver++"}),
    ("DPMSolverSinglestep", {"solver_order": 2, "solver_type": "heun", "lower_order_final": False}),
    ("UniPCMultistep", {"solver_order": 3, "solver_type": "bh1", "predict_x0": False, "lower_order_final": False}),
    ("UniPCMultistep", {"final_sigmas_type": "sigma_min", "rescale_betas_zero_snr": True}),
    ("DEISMultistep", {"solver_order": 3, "lower_order_final": False}),
    ("DEISMultistep", {"trained_betas": [0.0001 * 1.005**i for i in range(1000)]}),
    ("IPNDM", {}),
    ("FlowMatchEulerDiscrete", {"shift": 3.0}),
    ("FlowMatchHeunDiscrete", {"shift": 2.0}),
    ("EDMEuler", {"sigma_max": 50.0, "sigma_schedule": "exponential"}),
    ("EDMDPMSolverMultistep", {"solver_order": 3, "algorithm_type": "sde-dpmsolver++", "sigma_data": 1.0}),
    ("CosineDPMSolverMultistep", {"sigma_min": 0.2, "solver_type": "heun"}),
]  # fmt: skip


def plain(made: Any) -> dict[str, Any]:
    return {key: value for key, value in made.config.items() if not key.startswith("_")}


@pytest.mark.parametrize(("name", "options"), ROUND_TRIPS)
def test_a_config_goes_round(name: str, options: dict[str, Any]) -> None:
    """Config to ours to config: the same scheduler, by its own reading of every option and by its levels."""
    made = scheduler(name, **options)
    setup = from_diffusers(made)
    again = getattr(diffusers, name + "Scheduler").from_config(setup.to_diffusers())
    before, after = plain(made), plain(again)
    without = {"skip_prk_steps"}  # the warm-up of PNDM
    assert {k: v for k, v in after.items() if k not in without} == {k: v for k, v in before.items() if k not in without}
    assert from_diffusers(again) == setup
    if setup.betas is not None and isinstance(setup.process.schedule, TableSchedule):
        ours = torch.tensor(setup.process.schedule.alphas_cumprod, dtype=torch.float64)
        # The last entry of a table with zero terminal SNR is theirs to be 2^-24, above the one before.
        torch.testing.assert_close(ours, made.alphas_cumprod.double(), rtol=5e-5, atol=1e-7)


def test_configs_come_as_dicts_schedulers_and_files(tmp_path: Path) -> None:
    made = scheduler("UniPCMultistep", solver_order=3)
    made.save_pretrained(tmp_path)
    from_file = from_diffusers(tmp_path / "scheduler_config.json")
    assert (
        from_file
        == from_diffusers(made)
        == from_diffusers(json.loads((tmp_path / "scheduler_config.json").read_text()))
    )


def test_dynamic_shifts_take_mu() -> None:
    made = scheduler("FlowMatchEulerDiscrete", use_dynamic_shifting=True)
    made.set_timesteps(10, mu=0.8)
    assert from_diffusers(made, mu=0.8).timesteps(10) == pytest.approx(made.timesteps.tolist(), rel=1e-5)
    with pytest.raises(PlanError, match="needs mu"):
        from_diffusers(made)


def test_bounds_become_a_wrapper() -> None:
    setup = from_diffusers(scheduler("DDIM", clip_sample=True, clip_sample_range=0.5))
    wrapped = setup.wrap(spec_mixture(setup.process))
    assert isinstance(wrapped, Thresholding)
    assert float(wrapped(torch.full((3, 2), 2.0), 0.1).mean.abs().max()) <= 0.5
    free = from_diffusers(scheduler("DDIM", clip_sample=False))
    denoiser = spec_mixture(free.process)
    assert free.wrap(denoiser) is denoiser


def test_what_has_no_counterpart_is_refused() -> None:
    for config, message in (
        ({"_class_name": "CMStochasticIterativeScheduler"}, "no counterpart; known are"),
        ({"_class_name": "LCMScheduler", "timestep_scaling": 1.0}, "timestep_scaling=1.0"),
        ({"_class_name": "SCMScheduler", "prediction_type": "epsilon"}, "prediction_type='epsilon'"),
        ({"_class_name": "DDIMSchedule"}, "Did you mean 'DDIMScheduler'"),
        ({"_class_name": "DDIMScheduler", "brightness": 2}, "brightness=2"),
        ({"_class_name": "DDIMScheduler", "beta_schedule": "laplace"}, "beta_schedule='laplace'"),
        ({"_class_name": "DDIMScheduler", "prediction_type": "raw"}, "prediction_type='raw'"),
        ({"_class_name": "DPMSolverMultistepScheduler", "use_lu_lambdas": True}, "use_lu_lambdas"),
        ({"_class_name": "DPMSolverMultistepScheduler", "use_flow_sigmas": True}, "use_flow_sigmas"),
        ({"_class_name": "DPMSolverMultistepScheduler", "lambda_min_clipped": -5.1}, "lambda_min_clipped"),
        ({"_class_name": "DPMSolverSinglestepScheduler", "algorithm_type": "sde-dpmsolver++"}, "only deterministic"),
        ({"_class_name": "UniPCMultistepScheduler", "disable_corrector": [0]}, "disable_corrector"),
        ({"_class_name": "EDMEulerScheduler", "prediction_type": "v_prediction"}, "sigma_data"),
        ({"_class_name": "DDIMScheduler", "thresholding": True, "sample_max_value": 5.0}, "sample_max_value=5"),
    ):
        with pytest.raises(PlanError, match=message):
            from_diffusers(config)
    with pytest.raises(ValueError, match="only 1000"):
        from_diffusers({"_class_name": "UniPCMultistepScheduler"}).grid(1000)
    with pytest.raises(ValueError, match="steps=0"):
        from_diffusers({"_class_name": "DDIMScheduler"}).grid(0)


def test_a_table_that_ends_in_pure_noise_begins_there():
    config = {"_class_name": "DDIMScheduler", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    assert from_diffusers(config).grid(4).tolist() == pytest.approx([1.0, 0.75, 0.5, 0.25, 0.0])
