# SPDX-License-Identifier: Apache-2.0
"""What a path names and where it runs: a checkpoint or a bundle, on the processor, on a GPU, or as an engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..formats.bundle import MANIFEST_FILE, Bundle
from ..formats.checkpoint import Checkpoint
from ..models.config_reader import read_config
from .backend import Backend
from .cached_export import cached_bundle
from .options import AUTO, CPU, CUDA, OpenOptions
from .selection import open_backend, open_slots, remarks
from .slots import Slots

__all__ = ["Target", "is_checkpoint"]


def is_checkpoint(path: str | Path) -> bool:
    """Whether a folder is a model's and not a bundle's, as its files' names say.

    Example:
        >>> is_checkpoint("checkpoint"), is_checkpoint("bundle")
        (True, False)
    """
    return not (Path(path) / MANIFEST_FILE).is_file() and (Path(path) / "config.json").is_file()


@dataclass(frozen=True)
class Target:
    """A model that can be opened.

    Attributes:
        folder: with its tokenizer.
        device: "cpu", "cuda" or "cuda:N"; "engine" where TensorRT decides.
        bundle: what is opened, or None for a checkpoint.
        checkpoint: what is opened, or None for a bundle.
    """

    folder: Path
    device: str
    bundle: Bundle | None = None
    checkpoint: Checkpoint | None = None

    @classmethod
    def of(
        cls,
        path: str | Path | Bundle,
        options: OpenOptions | None = None,
        *,
        verify: bool | None = None,
        tell: Callable[[str], None] | None = None,
    ) -> Target:
        """Look at a path, and decide where it runs.

        Args:
            path: a folder that `nq-edge compress`, `import`, `export` or `build` wrote, or a bundle that is open.
            options: `device` says where; "auto" takes a GPU for a checkpoint where one is found.
            verify: of a bundle: True hashes every file, False none, None hashes at the first load only.
            tell: gets the line that says that a checkpoint is exported.

        Raises:
            NqEdgeError: NQ-BUNDLE, NQ-HASH, NQ-CKPT or NQ-ARCH for what cannot be read, and what exporting raises.

        Example:
            >>> Target.of("bundle").device
            'cpu'
        """
        options = options or OpenOptions()
        if isinstance(path, Bundle):
            return cls._of_bundle(path, options)
        path = Path(path)
        if is_checkpoint(path):
            return cls._of_checkpoint(Checkpoint(path), options, tell)
        return cls._of_bundle(Bundle.open(path, verify=verify), options)

    @classmethod
    def _of_bundle(cls, bundle: Bundle, options: OpenOptions) -> Target:
        if bundle.engine is not None:
            return cls(bundle.folder, "engine", bundle=bundle)
        return cls(bundle.folder, options.device if options.device.startswith(CUDA) else CPU, bundle=bundle)

    @classmethod
    def _of_checkpoint(cls, checkpoint: Checkpoint, options: OpenOptions, tell: Callable[[str], None] | None) -> Target:
        device = options.device
        if device == AUTO:
            from .cuda.device import device_count

            device = CUDA if options.provider == CPU and device_count() else CPU
        if device != CPU:
            return cls(checkpoint.folder, device, checkpoint=checkpoint)
        bundle = cached_bundle(checkpoint, tell)
        return cls(bundle.folder, CPU, bundle=bundle)

    @property
    def on_gpu(self) -> bool:
        """Whether our own decoder runs it on a GPU."""
        return self.device.startswith(CUDA)

    @property
    def name(self) -> str:
        """The backend's name."""
        return CUDA if self.on_gpu or self.bundle is None else self.bundle.backend

    @property
    def title(self) -> str:
        """What the model is called."""
        if self.checkpoint is not None:
            return self.checkpoint.name
        return str(self.model_config.get("name") or self.folder.resolve().name)

    @property
    def model_config(self) -> Mapping[str, Any]:
        """The model's config.json."""
        if self.checkpoint is not None:
            return self.checkpoint.config
        return {} if self.bundle is None else self.bundle.source_model

    @property
    def context(self) -> int:
        """Most tokens of a sequence that the model or the bundle allows."""
        if self.bundle is not None:
            return self.bundle.kv.capacity
        return read_config(self.model_config).max_positions

    @property
    def vocab_size(self) -> int:
        """Width of the logits."""
        return self.bundle.vocab_size if self.bundle is not None else read_config(self.model_config).vocab_size

    @property
    def layers(self) -> int:
        """Number of compressed layers."""
        if self.checkpoint is not None:
            return len(self.checkpoint.layers)
        return 0 if self.bundle is None else self.bundle.compressed_linears

    @property
    def file_bytes(self) -> int:
        """Bytes of its files."""
        if self.bundle is not None:
            return sum(entry.size for entry in self.bundle.files.values())
        return sum(path.stat().st_size for path in self.folder.iterdir() if path.is_file())

    def dtype(self, options: OpenOptions) -> str:
        """Type of the activations."""
        if self.on_gpu:
            return options.dtype or "float16"
        return self.bundle.dtype if self.bundle is not None else "float32"

    def table(self, options: OpenOptions) -> str:
        """How embedding and head are held: a type, or "int8" or "int4"."""
        if self.on_gpu and options.table is not None:
            return options.table
        if self.checkpoint is not None:
            return self.checkpoint.settings.embedding
        return "" if self.bundle is None else str(self.bundle.source_model.get("embedding", ""))

    def remarks(self, options: OpenOptions | None = None) -> tuple[str, ...]:
        """See `selection.remarks`."""
        return () if self.on_gpu or self.bundle is None else remarks(self.bundle, options)

    def open(self, options: OpenOptions, extra_outputs: tuple[str, ...] = ()) -> Backend:
        """Load it.

        Args:
            options: as given to `of`.
            extra_outputs: inner values to return beside the logits.

        Raises:
            NqEdgeError: as `open_backend` and `CudaBackend`.
        """
        if not self.on_gpu:
            assert self.bundle is not None
            return open_backend(self.bundle, options, extra_outputs=extra_outputs)
        from .cuda.backend import CudaBackend

        return CudaBackend(self._files(), options, extra_outputs=extra_outputs, device=self.device)

    def slots(self, options: OpenOptions, count: int) -> Slots:
        """Load it for several sequences at once.

        Raises:
            NqEdgeError: as `open_slots` and `CudaSlots`.
        """
        if not self.on_gpu:
            assert self.bundle is not None
            return open_slots(self.bundle, options, count=count)
        from .cuda.slots import CudaSlots

        return CudaSlots(self._files(), options, count=count, device=self.device)

    def _files(self) -> Any:
        from .cuda.bundle_files import bundle_files
        from .cuda.model_files import checkpoint_files

        if self.checkpoint is not None:
            return checkpoint_files(self.checkpoint)
        assert self.bundle is not None
        return bundle_files(self.bundle)
