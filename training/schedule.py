"""The learning rate as a fraction of its peak: warm-up, constant, linear decay to zero."""

from __future__ import annotations


def warmup_stable_decay(step: int, steps: int, warmup_steps: int, decay_fraction: float) -> float:
    """Fraction for step 0 <= step < steps; the decay takes the last `decay_fraction` of the steps.
    Before it begins the rate does not depend on `steps`: a run can be lengthened and resumed."""
    left = (steps - step) / max(1.0, decay_fraction * steps)
    return min(1.0, (step + 1) / max(1, warmup_steps), left)
