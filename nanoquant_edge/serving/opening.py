# SPDX-License-Identifier: Apache-2.0
"""Opening a checkpoint or a bundle for a chat or a server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..errors import NqEdgeError
from ..formats.tokenizer import Tokenizer, load_tokenizer
from ..runtimes import OpenOptions, Slots, Target, load_chat_template
from ..runtimes.generation_config import read_sampling
from ..runtimes.generator import read_eos_ids
from .drafting import Drafter, ModelDrafter, NgramDrafter
from .model import ModelSettings, ServedModel
from .options import SchedulerOptions
from .scheduler import Scheduler

__all__ = ["NGRAM", "NO_DRAFT", "open_model"]

#: What may stand for the path of a draft model.
NGRAM, NO_DRAFT = "ngram", "none"


def open_model(
    path: str | Path | Target,
    options: OpenOptions | None = None,
    *,
    slots: int = 1,
    scheduling: SchedulerOptions | None = None,
    names: Sequence[str] = (),
    draft: str | Path = NGRAM,
) -> ServedModel:
    """Open a checkpoint or a bundle.

    Args:
        path: the folder, or what `Target.of` made of it with the same options.
        options: how it is opened.
        slots: texts that are written at once; backends with a single sequence have one.
        scheduling: how texts share the model.
        names: what clients may call it; the source model's name by default.
        draft: what guesses tokens ahead: "ngram" looks them up in the text, "none" nothing, else the path of a smaller
            model's bundle with the same tokenizer.

    Raises:
        NqEdgeError: NQ-OPTION for a draft model with another tokenizer; NQ-TOKENIZER, NQ-TEMPLATE, and what
            `Target.of` and `Target.slots` raise.

    Example:
        >>> from nanoquant_edge.serving import Request
        >>> with open_model("bundle", OpenOptions(device="cpu", threads=1)) as model:
        ...     answer = model.writer.submit(Request(ids=model.encode_text("The sky"), max_new_tokens=4))
        ...     answer.result().finish_reason
        'length'
    """
    options = options or OpenOptions()
    target = path if isinstance(path, Target) else Target.of(path, options)
    tokenizer = load_tokenizer(target.folder)
    template = load_chat_template(target.folder, tokenizer)
    if template is not None:
        template.start()
    eos_ids = read_eos_ids(target.folder, target.model_config, tokenizer)
    sampling = read_sampling(target.folder)
    opened = target.slots(options, count=slots)
    known = None if target.bundle is None else target.bundle.source_model.get("name")
    own = str(known or target.folder.resolve().name)
    first, *others = names or (own,)
    settings = ModelSettings(
        name=first,
        aliases=tuple(others),
        vocab_size=opened.vocab_size,
        max_context=opened.max_context,
        eos_ids=eos_ids,
        sampling=sampling,
        kernel=opened.kernel,
        device=target.device,
    )
    scheduling = scheduling or SchedulerOptions()
    if draft == NO_DRAFT:
        scheduling = replace(scheduling, draft=0)
    try:
        drafter = (
            NgramDrafter() if draft in (NGRAM, NO_DRAFT) else _draft_model(Path(draft), options, opened, tokenizer)
        )
    except BaseException:
        opened.close()
        raise
    scheduler = Scheduler(opened, tokenizer, eos_ids=eos_ids, options=scheduling, drafter=drafter)
    return ServedModel(scheduler, tokenizer, settings=settings, chat_template=template)


def _draft_model(path: Path, options: OpenOptions, model: Slots, tokenizer: Tokenizer) -> Drafter:
    """A smaller model that writes ahead of `model`.

    Raises:
        NqEdgeError: NQ-OPTION when it has another tokenizer, and what opening raises.
    """
    target = Target.of(path, options)
    if load_tokenizer(target.folder).core.get_vocab() != tokenizer.core.get_vocab():
        raise NqEdgeError(
            "NQ-OPTION",
            f"the draft model {path} has another tokenizer than the model.",
            "Use a smaller model of the same family, or --draft ngram.",
        )
    options = replace(options, max_context=min(target.context, model.max_context))
    return ModelDrafter(target.slots(options, count=model.count), model.vocab_size)
