# SPDX-License-Identifier: Apache-2.0
"""The bundle folder's manifest, `nq_bundle.json`: written by exporters, checked by runtimes (docs/FORMAT.md)."""

from __future__ import annotations

import contextlib
import hashlib
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import NqEdgeError
from ..system.files import path_inside, read_json, sha256_of, write_json
from ..system.versions import release
from .backends import ENGINE_BACKENDS
from .engine import EngineInfo, read_engine
from .entry import Entry
from .graph import LINEAR_OP, OPERATOR_VERSION
from .kv_layout import KvLayout

__all__ = ["BUNDLE_VERSION", "MANIFEST_FILE", "REFERENCE_FILE", "Bundle", "FileEntry"]

MANIFEST_FILE = "nq_bundle.json"
REFERENCE_FILE = "reference.safetensors"
BUNDLE_VERSION = 1
#: A manifest has some kilobytes; one that lists a thousand files has some hundred.
_MOST_BYTES = 16 << 20
_LARGEST_VOCABULARY, _LARGEST_FILE = 1 << 24, 1 << 50
_SHA256 = re.compile(r"[0-9a-f]{64}")
#: Written beside the manifest once all hashes were seen to match, so that later loads check sizes only.
_VERIFIED_MARK = ".nq_verified"


@dataclass(frozen=True)
class FileEntry:
    """Size in bytes and SHA-256 (hex) of one bundle file."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Bundle:
    """What a bundle says about itself.

    Attributes:
        folder: where it lies (not stored).
        backend: what runs it, see `formats.backends`.
        backend_versions: lowest and highest backend version known to work, as strings; highest may be "".
        dialect: "ort", "onnx24" or "trt103".
        dtype: activation type ("float32", "float16", "bfloat16").
        portable: the operator's body in standard operators is in the file.
        operator_version: version of com.nanoquant::NanoQuantLinear that the graph uses.
        source_model: name and architecture of the compressed model.
        target_bpw, true_bpw: bits per weight asked for and stored.
        compressed_linears: number of compressed layers (not nodes).
        vocab_size: width of the logits.
        kv: cache layout.
        files: name -> size and hash, for every file of the bundle except the manifest.
        measured: figures that benchmarks recorded; free form.
        engine: what a TensorRT engine was built with and for; None in a bundle with an ONNX graph.
    """

    folder: Path
    backend: str
    backend_versions: tuple[str, str]
    dialect: str
    dtype: str
    portable: bool
    operator_version: int
    source_model: dict[str, Any]
    target_bpw: float
    true_bpw: float
    compressed_linears: int
    vocab_size: int
    kv: KvLayout
    files: dict[str, FileEntry] = field(default_factory=dict)
    measured: dict[str, Any] = field(default_factory=dict)
    engine: EngineInfo | None = None
    bundle_version: int = BUNDLE_VERSION

    def write(self) -> Bundle:
        """Record every file of the folder and write the manifest; returns the bundle with its files filled in."""
        files = {}
        for path in sorted(self.folder.rglob("*")):
            name = path.relative_to(self.folder).as_posix()
            if path.is_file() and name != MANIFEST_FILE and not path.name.startswith("."):
                files[name] = FileEntry(path.stat().st_size, sha256_of(path))
        entry = asdict(self)
        entry.pop("folder")
        entry["kv"] = self.kv.to_manifest()
        entry["files"] = {name: asdict(value) for name, value in files.items()}
        if self.engine is None:
            entry.pop("engine")
        else:
            entry["engine"] = self.engine.to_dict()
        write_json(self.folder / MANIFEST_FILE, entry)
        return Bundle.open(self.folder)

    @classmethod
    def open(cls, folder: str | Path, verify: bool | None = None) -> Bundle:
        """Read the manifest and check the files it lists.

        Args:
            folder: the bundle.
            verify: True hashes every file, False none; None hashes at the first load and leaves a mark.

        Raises:
            NqEdgeError: NQ-BUNDLE for a missing or invalid manifest or file, NQ-HASH when a file differs,
                NQ-PATH when a listed name leaves the folder.

        Example:
            >>> Bundle.open("bundle").backend
            'onnxruntime'
        """
        folder = Path(folder)
        if not (folder / MANIFEST_FILE).is_file():
            raise NqEdgeError(
                "NQ-BUNDLE",
                f"{folder} is not a bundle: it has no {MANIFEST_FILE}.",
                "Pass the folder that `nq-edge export` wrote.",
            )
        content = read_json(folder / MANIFEST_FILE, "NQ-BUNDLE", _MOST_BYTES)
        if content.get("bundle_version") != BUNDLE_VERSION:
            raise NqEdgeError(
                "NQ-BUNDLE",
                f"the bundle has version {str(content.get('bundle_version'))[:40]!r}, this program reads "
                f"{BUNDLE_VERSION}.",
                "Install the nanoquant-edge version that wrote it, or export again.",
            )
        bundle = cls(folder=folder, **_read(Entry(content)))
        bundle._check_files(verify)
        return bundle

    def path(self, name: str) -> Path:
        """Where a file of the bundle lies: the path to open it by, links of the Hugging Face cache resolved.

        Raises:
            NqEdgeError: NQ-BUNDLE for a file that the manifest does not list, NQ-PATH for a name that leaves the
                folder.
        """
        if name not in self.files:
            raise NqEdgeError("NQ-BUNDLE", f"{name[:200]!r} is needed, and the bundle's manifest does not list it.")
        return path_inside(self.folder, name)

    @property
    def has_model_config(self) -> bool:
        """Whether the manifest holds the model's config.json; those of early versions do not."""
        return isinstance(self.source_model.get("config"), dict)

    def model_config(self) -> dict[str, Any]:
        """The content of the model's config.json.

        Raises:
            NqEdgeError: NQ-BUNDLE when the manifest does not hold it.
        """
        if not self.has_model_config:
            raise NqEdgeError(
                "NQ-BUNDLE",
                "the bundle does not hold the model's configuration.",
                "Export it again with this version, or pass the checkpoint.",
            )
        return dict(self.source_model["config"])

    def check_operator_version(self) -> None:
        """Refuse a graph whose operators are of another version than this program's kernels.

        Raises:
            NqEdgeError: NQ-BACKEND naming both versions.
        """
        if self.operator_version != OPERATOR_VERSION:
            raise NqEdgeError(
                "NQ-BACKEND",
                f"the bundle uses version {self.operator_version} of {LINEAR_OP}, this program has version "
                f"{OPERATOR_VERSION}.",
                "Install a newer nanoquant-edge, or export and build again with this one.",
            )

    def _check_files(self, verify: bool | None) -> None:
        mark = self.folder / _VERIFIED_MARK
        if verify is None:
            verify = not self._seen_before(mark)
        for name, expected in self.files.items():
            path = path_inside(self.folder, name)
            if not path.is_file():
                raise NqEdgeError("NQ-BUNDLE", f"the bundle's file {name} is missing from {self.folder}.")
            size = path.stat().st_size
            if size != expected.size:
                raise NqEdgeError("NQ-HASH", f"{name} has {size} bytes, the manifest says {expected.size}.")
            if verify and (found := sha256_of(path)) != expected.sha256:
                raise NqEdgeError(
                    "NQ-HASH",
                    f"{name} has SHA-256 {found[:16]}..., the manifest says {expected.sha256[:16]}...",
                )
        if verify:
            with contextlib.suppress(OSError):  # a bundle on a read-only medium is hashed at each load
                write_json(mark, {"state": self._state()})

    def _state(self) -> str:
        """Digest of the manifest and of each file's identity and time of change.

        Inodes and times differ in a copy, so that a mark copied along with the bundle does not count.
        """
        digest = hashlib.sha256(sha256_of(self.folder / MANIFEST_FILE).encode())
        for name in self.files:
            status = path_inside(self.folder, name).stat()
            digest.update(f"{name} {status.st_dev} {status.st_ino} {status.st_size} {status.st_mtime_ns}".encode())
        return digest.hexdigest()

    def _seen_before(self, mark: Path) -> bool:
        try:
            return mark.is_file() and read_json(mark, "NQ-BUNDLE").get("state") == self._state()
        except (NqEdgeError, OSError):
            return False


def _read(entry: Entry) -> dict[str, Any]:
    """Manifest fields as constructor arguments.

    Raises:
        NqEdgeError: NQ-BUNDLE naming the first that is missing, of the wrong type or impossible.
    """
    dialect = entry.text("dialect")
    found: dict[str, Any] = {
        "backend": entry.text("backend"),
        "backend_versions": _versions(entry),
        "dialect": dialect,
        "dtype": entry.text("dtype"),
        "portable": entry.flag("portable"),
        "operator_version": entry.integer("operator_version"),
        "source_model": entry.anything("source_model"),
        "target_bpw": entry.number("target_bpw"),
        "true_bpw": entry.number("true_bpw"),
        "compressed_linears": entry.integer("compressed_linears"),
        "vocab_size": entry.integer("vocab_size", 1, _LARGEST_VOCABULARY),
        "kv": KvLayout.from_manifest(entry.entry("kv"), dialect),
        "files": {name: _read_file(file) for name, file in entry.entries("files").items()},
        "measured": entry.anything("measured"),
    }
    found["engine"] = engine = _read_engine(entry, found)
    if engine is not None:
        found["kv"] = engine.kv
    return found


def _versions(entry: Entry) -> tuple[str, str]:
    """Lowest and highest version; the highest may be empty."""
    given = entry.plain_texts("backend_versions", 2)
    for version in given:
        entry.need(not version or bool(release(version)), "backend_versions", list(given))
    return given[0], given[1]


def _read_file(entry: Entry) -> FileEntry:
    entry.exactly("size", "sha256")
    return FileEntry(entry.integer("size", 0, _LARGEST_FILE), entry.text("sha256", pattern=_SHA256))


def _read_engine(entry: Entry, found: dict[str, Any]) -> EngineInfo | None:
    """The manifest's engine, seen to agree with what the manifest says elsewhere."""
    flavour = ENGINE_BACKENDS.get(found["backend"])
    if flavour is None:
        if not entry.null("engine"):
            raise NqEdgeError("NQ-BUNDLE", f"the manifest describes an engine for backend {found['backend'][:40]!r}.")
        return None
    engine = read_engine(entry.entry("engine"))
    pairs = {
        "flavour": (engine.flavour, flavour.name),
        "precision": (engine.precision, found["dtype"]),
        "compressed_linears": (engine.compressed_linears, found["compressed_linears"]),
        "kv": (tuple(engine.kv.to_manifest().values()), tuple(found["kv"].to_manifest().values())),
    }
    for name, (inside, outside) in pairs.items():
        if inside != outside:
            raise NqEdgeError(
                "NQ-BUNDLE", f"the manifest contradicts itself: engine.{name} is {inside!r}, the bundle's {outside!r}."
            )
    for name in (engine.file, engine.timing_cache, engine.runtime_cache):
        if name and name not in found["files"]:
            raise NqEdgeError("NQ-BUNDLE", f"the engine needs {name[:200]!r}, which the manifest does not list.")
    return engine
