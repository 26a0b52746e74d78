"""`Model.sample`: the same samples whatever the batch, conditions by name, and clear refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.models.test_bundle import image_model, token_model, vector_model
from undiffuse.denoisers.base import Denoiser
from undiffuse.denoisers.reschedule import Reschedule
from undiffuse.errors import PlanError
from undiffuse.events import Advanced, Event, Finished, Started
from undiffuse.process.grids import make_grid
from undiffuse.process.registry import make_schedule
from undiffuse.sampling.constraints import Known
from undiffuse.sampling.registry import make_solver


@pytest.mark.parametrize("solver", ["ddim", "sde-dpm++2m", "heun"])
def test_samples_do_not_depend_on_the_batch_size(solver: str) -> None:
    model = vector_model()
    cond = {"label": [0, 1, 1, 0, 1, 0, 0], "pose": torch.arange(21.0).reshape(7, 3) / 10}
    arguments: dict[str, Any] = {"seed": 4, "cond": cond, "solver": solver, "guidance": 2.0}
    together = model.sample(7, **arguments)
    for batch_size in (1, 2, 3, 7, 100):
        parts = model.sample(7, batch_size=batch_size, **arguments)
        assert parts.shape == (7, 2)
        torch.testing.assert_close(parts, together, rtol=3e-5, atol=3e-5)
    exact = [model.to(dtype=torch.float64).sample(7, batch_size=b, dtype=torch.float64, **arguments) for b in (1, 7)]
    torch.testing.assert_close(exact[0], exact[1], rtol=1e-12, atol=1e-12)


def test_more_samples_begin_with_the_same_ones_and_first_goes_on() -> None:
    model = image_model()
    ten = model.sample(10, seed=2, steps=3)
    torch.testing.assert_close(model.sample(4, seed=2, steps=3), ten[:4], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.sample(6, seed=2, steps=3, first=4), ten[4:], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(model.sample(4, seed=3, steps=3), ten[:4], atol=0.1)


def test_tokens_do_not_depend_on_the_batch_size() -> None:
    model = token_model()
    together = model.sample(5, seed=1)
    assert together.dtype == torch.int64
    assert torch.equal(model.sample(5, seed=1, batch_size=2), together)
    begun = model.sample(5, seed=1, prefix="ab", batch_size=2)
    assert torch.equal(begun[:, :2], torch.tensor([[0, 1]] * 5))
    assert all(text.startswith("ab") for text in model.text(begun))


def test_images_come_in_data_units() -> None:
    x = image_model().sample(3, steps=3)
    assert x.shape == (3, 1, 4, 4)
    assert float(x.min()) >= 0.0
    assert float(x.max()) <= 16.0


def test_classes_are_known_by_number_name_and_per_sample() -> None:
    model = vector_model()
    by_number = model.sample(3, cond={"label": 1})
    for label in ("dog", ["dog"] * 3, [1, 1, 1], torch.tensor([1, 1, 1]), torch.tensor(1), ("dog", 1, "dog")):
        assert torch.equal(model.sample(3, cond={"label": label}), by_number)
    assert not torch.equal(model.sample(3, cond={"label": "cat"}), by_number)
    mixed = model.sample(3, cond={"label": ["cat", "dog", "dog"]})
    torch.testing.assert_close(mixed[1:], by_number[1:], rtol=1e-5, atol=1e-5)
    assert torch.equal(model.sample(3, cond={"label": None}), model.sample(3))


@pytest.mark.parametrize(
    ("cond", "parts"),
    [
        ({"label": 2}, ("label 2 does not exist", "0 to 1")),
        ({"label": -1}, ("label -1 does not exist",)),
        ({"label": "dgo"}, ("'dgo' does not exist", "Did you mean 'dog'")),
        ({"label": 0.5}, ("label",)),
        ({"label": [0, 1]}, ("2 rows", "1 or 3")),
        ({"label": torch.tensor([0.0, 1.0, 1.0])}, ("float",)),
        ({"pose": [1.0, 2.0]}, ("'pose'", "(3,)")),
        ({"text": "a cat"}, ("'text' is unknown", "label, pose")),
    ],
)
def test_unknown_conditions_and_labels_are_refused(cond: dict[str, Any], parts: tuple[str, ...]) -> None:
    with pytest.raises(ValueError) as caught:
        vector_model().sample(3, cond=cond)
    for part in parts:
        assert part in str(caught.value)


def test_a_model_without_conditions_says_so() -> None:
    with pytest.raises(ValueError, match="trained without conditions"):
        image_model().sample(1, cond={"label": 0})
    with pytest.raises(ValueError, match="guidance needs a condition"):
        image_model().sample(1, guidance=2.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, "n=0"),
        ({"n": 2, "batch_size": 0}, "batch_size=0"),
        ({"n": 2, "steps": 0}, "steps=0"),
        ({"n": 2, "steps": -4}, "steps=-4"),
        ({"n": 2, "solver": "dim"}, "Did you mean 'ddim'"),
        ({"n": 2, "grid": "lognsr"}, "lognsr"),
        ({"n": 2, "grid": ["t"]}, "neither the name of a spacing nor times"),
        ({"n": 2, "grid": [1.0, 0.0], "steps": 3}, "steps=3 was given beside a grid"),
        ({"n": 2, "guidance": -1.0, "cond": {"label": 0}}, "scale=-1"),
        ({"n": 2, "solver": "ddim", "solver_options": {"eta": 3.0}}, "eta=3"),
        ({"n": 2, "prefix": "ab"}, "prefix needs a token model"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vector_model().sample(**arguments)


def test_times_may_be_a_list() -> None:
    times = [1.0, 0.6, 0.3, 0.0]
    found = vector_model().sample_result(2, grid=times)
    assert found.nfe == 3
    assert torch.equal(found.x, vector_model().sample_result(2, grid=torch.tensor(times, dtype=torch.float64)).x)
    with pytest.raises(PlanError, match="rises at step 1"):
        vector_model().sample(2, grid=[1.0, 0.5, 0.7, 0.0])


def test_a_tuned_model_warns_of_what_changes_its_sampler(recwarn: pytest.WarningsRecorder) -> None:
    model = image_model()
    model.info["tuned_for"] = {"solver": "ddim", "steps": [2], "grid": "t", "guidance": 1.0}
    model.defaults.update({"solver": "ddim", "steps": 2, "grid": "t"})
    for same in ({}, {"solver_options": {"eta": 0.0}}, {"threshold": "none"}):
        model.sample(1, **same)
    assert not list(recwarn)
    for other, said in (({"solver_options": {"eta": 1.0}}, "eta=1.0"), ({"threshold": "static"}, "threshold=static")):
        with pytest.warns(UserWarning, match=f"tuned for solver=ddim.* is sampled with {said},"):
            model.sample(1, **other)


def test_noisy_states_are_no_samples() -> None:
    model = vector_model()
    for grid in ([1, 0.5], torch.tensor([1.0, 0.5]), torch.tensor([[[1.0, 1.0]], [[0.0, 0.2]]])):
        with pytest.raises(ValueError, match=r"ends at t=0\.\d, where samples are still noisy; let it end at 0"):
            model.sample(2, grid=grid)
    assert model.sample_result(2, grid=[1, 0.5]).nfe == 1
    smallest = model.process.schedule.t_min
    assert model.sample(2, grid=[1, 0.5, smallest]).shape == (2, 2)
    for dtype in (torch.float16, torch.bfloat16, torch.float32):  # a rounded end is that end
        assert model.sample(2, grid=torch.tensor([1, 0.5, smallest], dtype=dtype)).shape == (2, 2)
    with pytest.raises(PlanError, match="a grid of shape"):
        model.sample(2, grid=torch.zeros(3, 0))


@pytest.mark.parametrize("steps", [0, -2])
def test_wrong_steps_of_tokens_are_refused(steps: int) -> None:
    for solver in (None, "ancestral"):
        with pytest.raises(ValueError, match=f"steps={steps}"):
            token_model().sample(1, steps=steps, solver=solver)


@pytest.mark.parametrize("prefix", ["abx", "abababab", [0, 5], [-1], torch.zeros(2, 2, dtype=torch.int64)])
def test_wrong_prefixes_are_refused(prefix: Any) -> None:
    with pytest.raises(Exception) as caught:
        token_model().sample(1, prefix=prefix)
    assert type(caught.value).__module__.startswith("undiffuse") or isinstance(caught.value, ValueError)


def test_the_other_world_s_solver_is_refused() -> None:
    with pytest.raises(PlanError):
        vector_model().sample(1, solver="first-hitting")
    with pytest.raises(PlanError):
        token_model().sample(1, solver="ddim")


def test_defaults_hold_where_a_call_does_not_say() -> None:
    model = vector_model()
    assert model.sample_result(2).nfe == 4
    assert model.sample_result(2, cond={"label": 0}).nfe == 8  # the default guidance of 1.5 costs two
    assert model.sample_result(2, cond={"label": 0}, guidance=1.0).nfe == 4
    assert model.sample_result(2, steps=7).nfe == 7
    explicit = make_grid(model.denoiser.process.schedule, 4)  # type: ignore[union-attr]
    assert torch.equal(model.sample(2, grid=explicit, solver=make_solver("ddim")), model.sample(2))


def test_a_solver_s_published_grid_goes_by_name() -> None:
    model = vector_model()
    schedule = model.denoiser.process.schedule  # type: ignore[union-attr]
    for name in ("dpm-fast", "edm-heun", "deis-3"):
        explicit = make_solver(name).published_grid(schedule, 6)
        named = model.sample(2, solver=name, steps=6, grid="published")
        assert torch.equal(named, model.sample(2, solver=name, grid=explicit)), name
        assert not torch.equal(named, model.sample(2, solver=name, steps=6)), name
    model.defaults |= {"grid": "published", "solver": "deis-2"}
    assert torch.equal(model.sample(2, solver="heun", steps=6), model.sample(2, solver="heun", steps=6, grid="logsnr"))
    with pytest.raises(ValueError, match="Heun was published without a grid"):
        model.sample(2, solver="heun", grid="published")
    with pytest.raises(ValueError, match="which tokens do not have"):
        token_model().sample(1, solver="ancestral", grid="published")


def test_wrapping_constraints_and_start_reach_the_loop() -> None:
    model = vector_model()
    known = Known(torch.tensor([[0.25, 0.0]]), torch.tensor([[True, False]]))
    result = model.sample_result(3, constraints=[known])
    assert torch.equal(result.x[:, 0], torch.full((3,), 0.25))
    wrapped: list[Denoiser] = []

    def wrap(denoiser: Denoiser) -> Denoiser:
        wrapped.append(denoiser)
        return Reschedule(denoiser, denoiser.process)  # type: ignore[arg-type]

    torch.testing.assert_close(model.sample(3, wrap=wrap), model.sample(3), rtol=1e-5, atol=1e-5)
    assert wrapped == [model.denoiser]
    with pytest.raises(ValueError, match="batch_size"):
        model.sample(3, constraints=[known], batch_size=2)
    start = torch.zeros(3, 2)
    path = model.sample_result(3, start=start, trajectory=True).trajectory
    assert path is not None
    assert path.shape == (5, 3, 2)
    assert torch.equal(path[0], start)
    joined = model.sample_result(5, batch_size=2, trajectory=True)
    assert joined.trajectory is not None
    assert joined.trajectory.shape == (5, 5, 2)
    assert joined.nfe == 4


def test_progress_is_reported_as_events() -> None:
    events: list[Event] = []
    vector_model().sample(5, batch_size=2, listener=events.append)
    assert isinstance(events[0], Started)
    assert [e.done for e in events if isinstance(e, Advanced)] == [2, 4, 5]
    assert isinstance(events[-1], Finished)


def test_a_seed_may_be_any_integer_and_the_global_generator_is_left_alone() -> None:
    model = vector_model()
    torch.manual_seed(0)
    before = torch.get_rng_state()
    drawn = [model.sample(2, seed=s) for s in (0, -1, 2**63, 2**70)]
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.allclose(drawn[0], drawn[1])
    torch.manual_seed(9)
    assert torch.equal(model.sample(2, seed=0), drawn[0])


def test_a_model_describes_itself() -> None:
    text = repr(vector_model())
    assert "vector (2,)" in text
    assert "2 classes" in text
    assert vector_model().parameters == sum(p.numel() for p in vector_model().denoiser.parameters())


def test_options_that_would_be_ignored_are_refused() -> None:
    model = vector_model()
    grid = make_grid(make_schedule("vp"), 4)
    with pytest.raises(ValueError, match="leave one out"):
        model.sample(1, steps=3, grid=grid)
    with pytest.raises(ValueError, match="built already"):
        model.sample(1, solver=make_solver("ddim"), solver_options={"eta": 0.5})


def test_guidance_can_be_limited_to_an_interval_of_noise() -> None:
    model = vector_model()
    asked: dict[str, Any] = {"cond": {"label": 1}, "steps": 6, "guidance": 3.0}
    assert model.sample_result(2, **asked).nfe == 12
    inside = model.sample_result(2, **asked, guidance_interval=(0.1, 2.0))
    assert 6 < inside.nfe < 12
