# SPDX-License-Identifier: Apache-2.0
"""What every stage of a compression needs to know and to tell, as one object."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch

from ..system.progress import Progress
from .recipe import Recipe
from .resume import RunState

__all__ = ["Run", "StageClock"]


class StageClock:
    """Time that the stages of a run take, in seconds.

    Attributes:
        stages: stage -> seconds, in the order in which the stages began.
        steps: step of block reconstruction -> seconds over all layers; they lie inside of a stage.
    """

    def __init__(self) -> None:
        self._started = time.monotonic()
        self.stages: dict[str, float] = {}
        self.steps: dict[str, float] = {}

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the time that this context lasts toward a stage."""
        begin = time.monotonic()
        self.stages.setdefault(name, 0.0)
        try:
            yield
        finally:
            self.stages[name] += time.monotonic() - begin

    def add_steps(self, seconds: dict[str, float]) -> None:
        """Count seconds of one block toward the steps of block reconstruction."""
        for name, value in seconds.items():
            self.steps[name] = self.steps.get(name, 0.0) + value

    @property
    def total(self) -> float:
        """Seconds since the clock was made."""
        return time.monotonic() - self._started

    def to_dict(self) -> dict[str, float]:
        """Stages to a tenth and steps to a hundredth of a second, for the checkpoint's provenance."""
        stages = {name: round(value, 1) for name, value in self.stages.items()}
        return stages | {name: round(value, 2) for name, value in self.steps.items()}


@dataclass(frozen=True)
class Run:
    """One compression run.

    Attributes:
        recipe: schedule and learning rates, without what there is no memory for.
        device: where to compute.
        dtype: compute type of matrix products; parameters, statistics and losses are float32.
        seed: random seed for the calibration windows, the initial factors and the order of samples. It is set anew
            before every stage, as in the official code.
        progress: of the stage that this run was handed to.
        state: results of earlier stages on disk, for --resume; keeps nothing by default.
        clock: time of each stage.
    """

    recipe: Recipe
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    seed: int = 0
    progress: Progress = field(default_factory=Progress)
    state: RunState = field(default_factory=RunState)
    clock: StageClock = field(default_factory=StageClock)

    def part(self, start: float, end: float, prefix: str = "") -> Run:
        """This run, telling its progress as a part of the present stage's; see `Progress.part`."""
        return replace(self, progress=self.progress.part(start, end, prefix))
