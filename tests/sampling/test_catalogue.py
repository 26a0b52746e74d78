"""The table of solvers says what the solvers say."""

from __future__ import annotations

import subprocess
import sys

import pytest

from undiffuse.sampling.catalogue import CATALOGUE
from undiffuse.sampling.registry import SOLVERS, make_solver


def test_every_solver_has_a_row_and_there_are_enough():
    assert list(CATALOGUE) == list(SOLVERS), "give every solver of SOLVERS a row in sampling/catalogue.py, in its order"
    assert len(CATALOGUE) >= 25


@pytest.mark.parametrize("name", SOLVERS)
def test_a_row_says_what_its_class_says(name: str):
    solver, facts = make_solver(name), CATALOGUE[name]
    assert (facts.order, facts.evaluations, facts.stochastic) == (solver.order, solver.evaluations, solver.stochastic)
    assert (facts.needs, facts.grid) == (solver.needs, solver.grid)
    assert (facts.data == "tokens") == solver.discrete
    assert facts.what and facts.source


def test_the_table_is_there_without_torch():
    code = "import sys; import undiffuse.sampling.catalogue, undiffuse.sampling.registry; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
