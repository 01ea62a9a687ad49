# SPDX-License-Identifier: Apache-2.0
"""What rounding sums of four columns costs a product of signs, by columns that share a unit and by bits of a sum.

    python -m benchmarks.fixed_point

Relative error of random products against float64, for values of one size, for values with outliers of random sizes
(log-normal, factors of 1000), and for one value in 64 that is a thousand times larger: the kernels' scheme, in NumPy.
"""

from __future__ import annotations

import click
import numpy as np

COLUMNS, ROWS = 1536, 256


def product(signs: np.ndarray, x: np.ndarray, *, group: int, bits: int) -> np.ndarray:
    """Signs [rows, columns] times x [columns], sums of four columns in `bits` bits, a unit for each `group` columns."""
    sums = (signs * x).reshape(len(signs), -1, group // 4, 4).sum(-1)
    largest = np.abs(x).reshape(-1, group // 4, 4).sum(-1).max(-1)
    unit = np.maximum(largest, 1e-30) / (2.0 ** (bits - 1) - 2)
    return (np.rint(sums / unit[:, None]) * unit[:, None]).sum((1, 2))


def error(x: np.ndarray, rng: np.random.Generator, *, group: int, bits: int) -> float:
    """Relative error of a product with random signs."""
    signs = rng.choice([-1.0, 1.0], size=(ROWS, len(x)))
    exact = signs @ x
    found = product(signs, x, group=group, bits=bits)
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


@click.command()
def main() -> None:
    """Print a table."""
    print("| columns that share a unit | bits | one size | log-normal | one outlier in 64 |")
    print("| --- | --- | --- | --- | --- |")
    for bits in (14, 15, 16, 24):
        for group in (32, 64, 128, 512, 1536):
            rng, shown = np.random.default_rng(0), []
            for kind in range(3):
                x = rng.normal(size=COLUMNS)
                if kind == 1:
                    x *= np.exp(rng.normal(size=COLUMNS) * np.log(1000) / 3)
                if kind == 2:
                    x[7::64] *= 1000
                shown.append(error(x, rng, group=group, bits=bits))
            print(f"| {group} | {bits} | " + " | ".join(f"{value:.1e}" for value in shown) + " |")


if __name__ == "__main__":
    main()
