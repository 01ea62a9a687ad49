# SPDX-License-Identifier: Apache-2.0
"""One line about the rate of a compression, where a model of that size is known to bear less."""

from __future__ import annotations

from pathlib import Path

from ..devices.quality import RateAdvice, rate_advice
from ..errors import NqEdgeError
from ..models.config import DecoderConfig

__all__ = ["rate_hint"]

#: A rate that was asked for is left uncommented down to this share of the advised one.
_FAR_BELOW = 0.7


def rate_hint(model: Path, bpw: float | None, default: float) -> str | None:
    """What to say about a rate; None where there is nothing to say, or nothing is known of the model yet.

    Args:
        model: a Hugging Face folder, a .gguf file or a hub id, of which nothing is looked up.
        bpw: the rate that was asked for; None where the default is taken.
        default: the rate that is taken then.
    """
    config = _config(model)
    if config is None:
        return None
    rate = default if bpw is None else bpw
    advice = rate_advice(config, rate)
    if rate >= advice.bpw or (bpw is not None and rate >= _FAR_BELOW * advice.bpw):
        return None
    return _words(rate, advice, given=bpw is not None)


def _words(rate: float, advice: RateAdvice, *, given: bool) -> str:
    known = []
    if advice.asked is not None:
        known.append(f"{advice.asked.ppl / advice.asked.ppl_dense:.1f} times the dense perplexity at {rate:g}")
    if advice.there is not None:
        known.append(f"{advice.there.ppl / advice.there.ppl_dense:.1f} times at {advice.bpw:g}")
    figures = f" ({advice.like}, nearest in size: {', '.join(known)})" if known else ""
    asked = f"--bpw {rate:g} is low for" if given else f"{rate:g} bits per weight, the default, are few for"
    return f"{asked} a model of this size: --bpw {advice.bpw:g} is what it bears{figures}."


def _config(model: Path) -> DecoderConfig | None:
    from ..models.config_reader import read_config
    from ..system.files import read_json

    try:
        if (model / "config.json").is_file():
            return read_config(read_json(model / "config.json", "NQ-MODEL"))
        if model.suffix == ".gguf" and model.is_file():
            from ..models.gguf.config import read_gguf_config
            from ..models.gguf.content import GgufContent

            return read_config(read_gguf_config(GgufContent(model)))
    except NqEdgeError:  # whoever loads the model says what is wrong with it
        return None
    return None
