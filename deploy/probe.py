"""Is the policy in the engine the one that was trained? A verdict from logprobs; pure.

After a swap the server scores the manifest's probe in the engine. Besides the plain gap to what the trainer wrote,
the *dose* is fitted: with d = logprobs - reference_logprobs, the s that minimises |measured - reference - s d|.
The policy applied once gives s near 1, an adapter that was never applied 0, one applied twice about 2. The fit
averages over all tokens, so it sees a missing adapter whose effect is smaller than the tolerance; where policy and
reference do not differ by more than the noise, it is not consulted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from deploy.manifest import Probe

_NOISE_FLOOR_NATS = 1e-4  # float32 sums in another order
_STANDARD_ERRORS = 3.0


@dataclass(frozen=True)
class ProbeVerdict:
    passed: bool
    message: str
    gap_nats: float  # mean absolute, measured to policy
    reference_gap_nats: float  # mean absolute, measured to reference
    dose: float | None  # None: policy and reference cannot be told apart


def probe_verdict(probe: Probe, measured: Sequence[Sequence[float]]) -> ProbeVerdict:
    """`measured[i][t]` is the engine's logprob of `probe.cases[i].token_ids[t]`, in nats."""
    expected_lengths = [len(case.token_ids) for case in probe.cases]
    lengths = [len(row) for row in measured]
    if lengths != expected_lengths:
        return _failed(f"the engine scored {lengths} tokens, the probe has {expected_lengths}")
    measured_T = np.concatenate([np.asarray(row, dtype=np.float64) for row in measured])
    policy_T = np.concatenate([np.asarray(case.logprobs) for case in probe.cases])
    reference_T = np.concatenate([np.asarray(case.reference_logprobs) for case in probe.cases])
    if not np.isfinite(measured_T).all():
        return _failed("the engine returned a logprob that is NaN or infinite")

    gap = float(np.abs(measured_T - policy_T).mean())
    reference_gap = float(np.abs(measured_T - reference_T).mean())
    dose, error = _dose(measured_T, policy_T, reference_T)
    numbers = (
        f"mean gap {gap:.4f} nats to the policy and {reference_gap:.4f} to its reference, "
        f"tolerance {probe.tolerance_nats:.4f}"
    )
    fault = _fault(dose, error, gap, probe.tolerance_nats)
    return ProbeVerdict(fault is None, f"{fault or 'proved'}; {numbers}", gap, reference_gap, dose)


def _fault(dose: float | None, error: float, gap: float, tolerance: float) -> str | None:
    if dose is not None and abs(dose) + error < 0.5:
        return "not applied: the engine answers as the reference"
    if dose is not None and dose - error > 1.5:
        return f"looks applied twice (dose {dose:.2f})"
    if gap > tolerance:
        return "another policy than the one that was trained"
    if dose is not None and dose < 0.5:
        return f"nearer to the reference than to the policy (dose {dose:.2f})"
    return None


def _dose(measured_T: np.ndarray, policy_T: np.ndarray, reference_T: np.ndarray) -> tuple[float | None, float]:
    """The fitted dose and three standard errors of it; None where they exceed a third, as nothing can be told."""
    direction_T = policy_T - reference_T
    length = float(np.linalg.norm(direction_T))
    if length == 0.0:
        return None, 0.0
    dose = float((measured_T - reference_T) @ direction_T) / length**2
    residual_T = measured_T - reference_T - dose * direction_T
    noise = max(float(np.sqrt((residual_T**2).mean())), _NOISE_FLOOR_NATS)
    error = _STANDARD_ERRORS * noise / length
    return (dose, error) if error < 1 / 3 else (None, error)


def _failed(message: str) -> ProbeVerdict:
    return ProbeVerdict(False, message, float("nan"), float("nan"), None)
