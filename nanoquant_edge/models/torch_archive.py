# SPDX-License-Identifier: Apache-2.0
"""Files of `torch.save`: zip archives with a pickle inside, read as tensors only.

`torch.load(weights_only=True)` runs no code from the file, but it believes the archive's sizes. What is checked here
before it opens one: the file is such an archive, nothing in it is packed (torch never packs, and a packed member could
grow a thousandfold), and the members are no larger than the file.
"""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path
from typing import Any

from ..errors import NqEdgeError, first_line
from ..formats.lfs_pointer import check_is_no_pointer

__all__ = ["check_torch_archive", "load_tensors"]

#: The pickle of a model of 100,000 tensors has some 30 MB.
_MAX_PICKLE = 256 << 20
_MAX_MEMBERS = 1 << 20


def check_torch_archive(path: Path, code: str) -> None:
    """Refuse what is no plain `torch.save` archive.

    Raises:
        NqEdgeError: `code`.
    """
    check_is_no_pointer(path, code)
    hint = "Save it again with a current PyTorch, or convert it to safetensors."
    try:
        size = path.stat().st_size
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except Exception as error:  # BadZipFile, struct.error, UnicodeDecodeError, NotImplementedError, OSError ...
        raise NqEdgeError(code, f"{path} is not a zip archive of torch.save ({first_line(error)}).", hint) from error
    pickles = [item for item in members if item.filename.endswith("/data.pkl")]
    plain = all(item.compress_type == zipfile.ZIP_STORED for item in members)
    fits = sum(item.file_size for item in members) <= size and len(members) <= _MAX_MEMBERS
    if len(pickles) != 1 or not plain or not fits or pickles[0].file_size > _MAX_PICKLE:
        raise NqEdgeError(code, f"{path} is not an archive as torch.save writes it.", hint)


def load_tensors(path: Path, code: str) -> dict[str, Any]:
    """The tensors of a `torch.save` file that holds one flat dictionary.

    Args:
        path: the file.
        code: of every error.

    Returns:
        Name -> dense CPU tensor, whose size is backed by bytes of the file.

    Raises:
        NqEdgeError: `code` when the file is damaged, holds code, or is something else than a dictionary of tensors.
    """
    import torch

    check_torch_archive(path, code)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old protocols and the like; what is wrong is raised
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # pickle and torch raise many kinds for damaged files
        raise NqEdgeError(code, f"{path} cannot be read as tensors only: {first_line(error)}.") from error
    good = isinstance(content, dict) and all(isinstance(name, str) for name in content)
    if not good or not all(_plain(value) for value in content.values()):
        raise NqEdgeError(code, f"{path} does not hold a flat dictionary of plain tensors.")
    return dict(content)


def _plain(value: Any) -> bool:
    """A dense CPU tensor without overlapping elements: a stride of 0 makes any size out of one number."""
    import torch

    if not isinstance(value, torch.Tensor) or value.layout != torch.strided or value.device.type != "cpu":
        return False
    return value.is_contiguous() and value.numel() * value.element_size() <= value.untyped_storage().nbytes()
