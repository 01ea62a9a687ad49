# SPDX-License-Identifier: Apache-2.0
"""Opening a bundle for a chat or a server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..errors import NqEdgeError
from ..formats.bundle import Bundle
from ..formats.tokenizer import Tokenizer, load_tokenizer
from ..runtimes import OpenOptions, Slots, load_chat_template, open_slots
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
    path: str | Path,
    options: OpenOptions | None = None,
    *,
    slots: int = 1,
    scheduling: SchedulerOptions | None = None,
    verify: bool | None = None,
    names: Sequence[str] = (),
    draft: str | Path = NGRAM,
) -> ServedModel:
    """Open a bundle that `nq-edge export` or `build` wrote.

    Args:
        path: the bundle's folder.
        options: how it is opened.
        slots: texts that are written at once; backends with a single sequence have one.
        scheduling: how texts share the model.
        verify: True hashes every file, False none, None hashes at the first load only.
        names: what clients may call it; the source model's name by default.
        draft: what guesses tokens ahead: "ngram" looks them up in the text, "none" nothing, else the path of a smaller
            model's bundle with the same tokenizer.

    Raises:
        NqEdgeError: NQ-OPTION for a draft model with another tokenizer; NQ-BUNDLE, NQ-HASH, NQ-TOKENIZER, NQ-TEMPLATE,
            and what `open_slots` raises.

    Example:
        >>> from nanoquant_edge.serving import Request
        >>> with open_model("bundle", OpenOptions(threads=1)) as model:
        ...     answer = model.writer.submit(Request(ids=model.encode_text("The sky"), max_new_tokens=4))
        ...     answer.result().finish_reason
        'length'
    """
    options = options or OpenOptions()
    bundle = Bundle.open(path, verify=verify)
    tokenizer = load_tokenizer(bundle.folder)
    template = load_chat_template(bundle.folder, tokenizer)
    if template is not None:
        template.start()
    eos_ids, sampling = read_eos_ids(bundle, tokenizer), read_sampling(bundle.folder)
    opened = open_slots(bundle, options, count=slots)
    own = str(bundle.source_model.get("name") or bundle.folder.resolve().name)
    first, *others = names or (own,)
    settings = ModelSettings(
        name=first,
        aliases=tuple(others),
        vocab_size=opened.vocab_size,
        max_context=opened.max_context,
        eos_ids=eos_ids,
        sampling=sampling,
        kernel=opened.kernel,
        device=opened.name,
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
    bundle = Bundle.open(path)
    if load_tokenizer(bundle.folder).core.get_vocab() != tokenizer.core.get_vocab():
        raise NqEdgeError(
            "NQ-OPTION",
            f"the draft model {path} has another tokenizer than the model.",
            "Use a smaller model of the same family, or --draft ngram.",
        )
    context = min(bundle.kv.capacity, model.max_context)
    return ModelDrafter(open_slots(bundle, replace(options, max_context=context), count=model.count), model.vocab_size)
