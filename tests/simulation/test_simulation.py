"""A few seeds of the simulation, and those that once failed; `make simulate` runs many."""

from __future__ import annotations

import pytest

from tests.simulation.__main__ import failure
from tests.simulation.effects import SERVICES
from tests.simulation.mutants import MUTANTS
from tests.simulation.run import CRASHES_MIN, simulate
from tests.simulation.seeds import REGRESSIONS

QUICK = (1,)
SEEDS_PER_MUTANT = 10
"""Within so many seeds each mutant is found."""


@pytest.mark.parametrize("seed", [*QUICK, *REGRESSIONS])
def test_nothing_is_lost_or_counted_twice_whatever_goes_wrong(seed: int) -> None:
    outcome = simulate(seed)
    assert not outcome.violations, failure(outcome)
    assert outcome.events >= 2000
    assert outcome.crashes >= CRASHES_MIN
    assert {service for service, _ in outcome.faults} == set(SERVICES)


def test_a_seed_is_one_run() -> None:
    first, second = simulate(5, events=300), simulate(5, events=300)
    assert first == second
    assert len(first.trail) > 20


@pytest.mark.faults
@pytest.mark.parametrize("mutant", MUTANTS)
def test_every_wrong_build_is_found(mutant: str) -> None:
    assert any(simulate(seed, mutant=mutant).violations for seed in range(1, 1 + SEEDS_PER_MUTANT))


@pytest.mark.faults
@pytest.mark.parametrize("mutant", [name for name in MUTANTS if name != "wall-clock"])
def test_undisturbed_they_are_right(mutant: str) -> None:
    outcome = simulate(1, mutant=mutant, disturbed=False)
    assert not outcome.violations, failure(outcome, mutant=mutant)
