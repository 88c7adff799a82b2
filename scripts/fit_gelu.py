"""Find the coefficients of the exact GELU in scratchvit/kernels/gelu.py: Φ(x) = ½ (1 + tanh Σ cₖ x²ᵏ⁺¹).

    python scripts/fit_gelu.py

Lawson's method: least squares, with each point's weight multiplied by its error, again and again, tends to the fit
whose largest error is smallest. The error is that of x Φ(x), or of Φ(x) where |x| < 1. Only an odd number of terms
ends in a positive coefficient, which keeps tanh at 1 beyond the range of the fit.
"""

import numpy as np
from scipy.special import log_ndtr, ndtr

TERMS, RANGE, ROUNDS = 7, 7.0, 400


def main() -> None:
    """Fit and print."""
    x = np.linspace(1e-3, RANGE, 6000)
    u = 0.5 * (log_ndtr(x) - log_ndtr(-x))              # Φ = ½ (1 + tanh u)
    importance = np.maximum(x, 1)
    slope = 2 * ndtr(x) * ndtr(-x) * importance + 1e-9  # how an error of u becomes one of Φ
    powers = x[:, None] ** (2 * np.arange(TERMS) + 1)
    scale = powers.max(axis=0)
    weight, best, coefficients = np.ones_like(x), np.inf, np.zeros(TERMS)
    for _ in range(ROUNDS):
        rows = slope * np.sqrt(weight)
        fit = np.linalg.lstsq(powers / scale * rows[:, None], u * rows, rcond=None)[0] / scale
        error = np.abs(0.5 * (1 + np.tanh(powers @ fit)) - ndtr(x)) * importance
        if error.max() < best:
            best, coefficients = error.max(), fit
        weight *= error
        weight /= weight.sum()
    print(f"largest error {best:.1e}")
    print(*coefficients, sep="\n")


if __name__ == "__main__":
    main()
