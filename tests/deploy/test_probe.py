"""The probe tells a policy that is in the engine from one that is not, is there twice, or is another one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.manifest import Probe, ProbeCase
from deploy.probe import probe_verdict

NOISE_NATS = 0.003  # what two numerics of one model differ by


def make_probe(effect_nats: float, seed: int, tokens: int = 200, tolerance_nats: float = 0.05) -> Probe:
    rng = np.random.default_rng(seed)
    reference = rng.uniform(-3, -0.1, (2, tokens))
    policy = reference + effect_nats * rng.standard_normal((2, tokens))
    cases = [
        ProbeCase(prompt_token_ids=[1], token_ids=[2] * tokens, logprobs=list(p), reference_logprobs=list(r))
        for p, r in zip(policy, reference, strict=True)
    ]
    return Probe(cases=cases, tolerance_nats=tolerance_nats)


def engine_shows(probe: Probe, dose: float, seed: int, noise: float = NOISE_NATS) -> list[list[float]]:
    rng = np.random.default_rng(seed + 1000)
    rows = []
    for case in probe.cases:
        policy, reference = np.array(case.logprobs), np.array(case.reference_logprobs)
        rows.append(list(reference + dose * (policy - reference) + noise * rng.standard_normal(len(policy))))
    return rows


@settings(deadline=None)
@given(effect=st.floats(0.005, 2.0), seed=st.integers(0, 10_000))
def test_applied_once_passes_and_a_missing_or_doubled_one_does_not(effect: float, seed: int) -> None:
    """Even where the whole effect is a tenth of the tolerance."""
    probe = make_probe(effect, seed)
    assert probe_verdict(probe, engine_shows(probe, 1.0, seed)).passed
    missing = probe_verdict(probe, engine_shows(probe, 0.0, seed))
    assert not missing.passed
    assert missing.message.startswith("not applied")
    twice = probe_verdict(probe, engine_shows(probe, 2.0, seed))
    assert not twice.passed
    assert twice.message.startswith("looks applied twice")


def test_a_policy_that_equals_its_reference_passes() -> None:
    """A first adapter may well be all zeros; then there is nothing to tell apart."""
    probe = make_probe(0.0, 1)
    verdict = probe_verdict(probe, engine_shows(probe, 1.0, 1))
    assert verdict.passed
    assert verdict.dose is None


def test_another_policy_fails() -> None:
    probe, other = make_probe(0.5, 1), make_probe(0.5, 2)
    verdict = probe_verdict(probe, engine_shows(other, 1.0, 2))
    assert not verdict.passed
    assert verdict.message.startswith("another policy")
    assert verdict.gap_nats > probe.tolerance_nats


def test_an_adapter_scaled_wrongly_fails() -> None:
    probe = make_probe(0.5, 1)
    assert not probe_verdict(probe, engine_shows(probe, 1.3, 1)).passed
    assert not probe_verdict(probe, engine_shows(probe, 0.7, 1)).passed


@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
def test_an_engine_that_returns_nonsense_fails(bad: float) -> None:
    probe = make_probe(0.5, 1)
    rows = engine_shows(probe, 1.0, 1)
    rows[1][7] = bad
    assert not probe_verdict(probe, rows).passed
    assert not probe_verdict(probe, rows[:1]).passed
    assert not probe_verdict(probe, [rows[0], rows[1][:-1]]).passed
