# SPDX-License-Identifier: Apache-2.0
"""The deployment folder: what goes into it, in the order in which it is made."""

from __future__ import annotations

import platform
import re
import shutil
import sys
from pathlib import Path

from ..devices.assess import Assessment, assess
from ..devices.model import open_model
from ..devices.profile import Target
from ..errors import NqEdgeError
from ..formats.backends import BOARD_BUILD, ONNXRUNTIME
from ..formats.bundle import MANIFEST_FILE, Bundle
from ..system.extras import install_command
from ..system.files import new_folder, path_inside, sha256_of, write_json
from ..system.progress import Progress, Show
from ..system.sources import copy_sources
from .deployment import Deployment
from .native import provide_library
from .options import DeployOptions
from .requirements import fetch_wheels, hashed_lines, index_lines, write_page
from .scripts import write_scripts
from .wheel import write_own_wheel

__all__ = ["DEPLOY_FILE", "deploy"]

DEPLOY_FILE = "nq_deploy.json"
#: What the board itself fetches from an index; absent where all wheels travel along.
INDEX_REQUIREMENTS = "requirements-index.txt"
#: Minor version of GLIBC 2.x of the systems in the profiles (their release notes).
_GLIBC = {"Ubuntu 20.04": 31, "Ubuntu 22.04": 35, "Raspberry Pi OS 12": 36, "Ubuntu 24.04": 39}
#: Oldest Python that this package runs on.
_OLDEST = (3, 10)
#: Backend of a bundle -> its folder.
_FOLDERS = {ONNXRUNTIME: "bundle", "tensorrt": "engine", BOARD_BUILD: "graph"}


def deploy(
    bundle: str | Path,
    target: Target,
    *,
    output: str | Path,
    options: DeployOptions | None = None,
    overwrite: bool = False,
    progress: Show | None = None,
) -> Deployment:
    """Make the folder that a board needs.

    Args:
        bundle: what `nq-edge export --to onnx` or `nq-edge build` wrote; all hashes are checked.
        target: a board or a PC's processor.
        output: the folder; it appears only when it is complete.
        options: what travels along; None takes the defaults.
        overwrite: replace a deployment that stands there.
        progress: told what is being done.

    Raises:
        NqEdgeError: NQ-DEPLOY for a device or a bundle that no folder can be made for, NQ-FIT when the model does not
            fit, NQ-BUNDLE, NQ-HASH or NQ-PATH for a damaged or hostile bundle, NQ-OUTPUT for a place that cannot be
            written.

    Example:
        >>> from nanoquant_edge.devices import target_named
        >>> options = DeployOptions(wheels=False, build_native=False)
        >>> deploy("bundle", target_named("raspberry-pi-5"), output="board", options=options).target.name
        'raspberry-pi-5-8gb'
    """
    options, told = options or DeployOptions(), Progress.to(progress)
    told(0.0, "checking the bundle")
    source = Bundle.open(bundle, verify=True)
    if target.architecture == "any" or source.backend not in _FOLDERS:
        raise NqEdgeError(
            "NQ-DEPLOY",
            f"deployment folders are for boards and processors, not for {target.title} with a {source.backend} bundle.",
            f"On a PC: {install_command('rtx')}, copy the bundle, and run nq-edge generate.",
        )
    system = target.software[0] if target.software else {"python": f"{sys.version_info[0]}.{sys.version_info[1]}"}
    python = options.python or _usable(system["python"])
    glibc = _GLIBC.get(system.get("os", "")) or _own_glibc()
    version = _own_version()
    found = _assessed(source, target)
    with new_folder(Path(output), overwrite) as scratch:
        run_folder = scratch / _FOLDERS[source.backend]
        told(0.05, "copying the bundle")
        _copy_bundle(source, run_folder)
        graph = run_folder.name == "graph"
        if target.flavour == "standard" and source.backend == ONNXRUNTIME:
            told(0.15, "writing the TensorRT graph")
            graph = _write_graph(source, target, scratch / "graph")
        told(0.25, "providing the operator's library")
        libraries: list[str] = []
        if options.build_native:
            libraries = provide_library(
                scratch / "native", target.architecture, glibc=glibc, version=version, given=options.native
            )
        if not copy_sources(scratch / "plugins") and not libraries:
            raise NqEdgeError(
                "NQ-DEPLOY",
                f"there is neither a library for {target.title} nor the sources to build one from.",
                "Pass --native with a folder of libraries, or install nanoquant-edge from a whole wheel.",
            )
        told(0.4, "fetching wheels" if options.wheels else "writing this package's wheel")
        cuda = system.get("cuda", "") if graph or run_folder.name == "engine" else ""
        wheels = _write_requirements(scratch, index_lines(python, cuda), options.wheels, (python, target, glibc))
        told(0.9, "writing scripts and checksums")
        made = Deployment(
            folder=Path(output),
            target=target,
            bundle=source,
            python=python,
            glibc=glibc,
            libraries=tuple(libraries),
            wheels=tuple(wheels),
            complete=options.wheels,
            graph=graph,
            found=found,
        )
        write_scripts(scratch, made, version)
        write_json(scratch / DEPLOY_FILE, made.to_dict())
        _write_sums(scratch)
        told(1.0, "done")
    return made


def _write_requirements(folder: Path, lines: list[str], fetched: bool, board: tuple[str, Target, int]) -> list[str]:
    """Write wheels/, requirements.txt (what travels along) and requirements-index.txt (what the board fetches).

    Returns:
        Names of the wheels.
    """
    python, target, glibc = board
    wheels = folder / "wheels"
    wheels.mkdir()
    names = [write_own_wheel(wheels).name]
    if fetched:
        names = fetch_wheels(wheels, lines, python=python, architecture=target.architecture, glibc=glibc)
    else:
        (folder / INDEX_REQUIREMENTS).write_text("\n".join(lines) + "\n", encoding="utf-8")
    write_page(wheels)
    hashed = hashed_lines([wheels / name for name in names])
    (folder / "requirements.txt").write_text("\n".join(hashed) + "\n", encoding="utf-8")
    return names


def _assessed(source: Bundle, target: Target) -> Assessment | None:
    """Fit and forecast.

    Raises:
        NqEdgeError: NQ-FIT when not even a context of 256 tokens fits.
    """
    if not source.has_model_config:
        return None
    model = open_model(str(source.folder))
    context = min(2048, source.kv.capacity)
    found = assess(model, target, context=context)
    if not found.fit.fits and found.largest_context >= 256:
        return assess(model, target, context=found.largest_context)
    if not found.fit.fits:
        raise NqEdgeError(
            "NQ-FIT",
            f"{target.title} has {(found.fit.available or 0) / 1e6:.0f} MB for a model, this one needs "
            f"{found.fit.needed / 1e6:.0f} MB at context {context}.",
            f"nq-edge devices fit {source.folder} --device {target.name} shows what would fit.",
        )
    return found


def _copy_bundle(source: Bundle, folder: Path) -> None:
    for name in [*source.files, MANIFEST_FILE]:
        read, written = path_inside(source.folder, name), path_inside(folder, name)
        written.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(read, written)


def _write_graph(source: Bundle, target: Target, folder: Path) -> bool:
    """Write the graph that the board builds its engine from; False where the packages for it are missing here."""
    if not source.has_model_config:
        return False
    try:
        from ..exporters.tensorrt import build_engine
    except ModuleNotFoundError:
        return False
    return build_engine(source.folder, folder, target=(target.name,)).backend == BOARD_BUILD


def _write_sums(folder: Path) -> None:
    """SHA256SUMS as sha256sum reads it, of everything but itself."""
    lines = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name != "SHA256SUMS":
            lines.append(f"{sha256_of(path)}  {name}\n")
    (folder / "SHA256SUMS").write_text("".join(lines), encoding="utf-8")


def _own_glibc() -> int:
    """Minor version of this machine's GLIBC 2.x, for a device that is this machine; 31 where it is told nowhere."""
    match = re.fullmatch(r"2\.(\d+)", platform.libc_ver()[1])
    return int(match[1]) if match else 31


def _usable(python: str) -> str:
    major, minor = (int(part) for part in python.split(".")[:2])
    return python if (major, minor) >= _OLDEST else ".".join(map(str, _OLDEST))


def _own_version() -> str:
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as version_of

    try:
        return version_of("nanoquant-edge")
    except PackageNotFoundError as error:
        raise NqEdgeError(
            "NQ-DEPLOY", "nanoquant-edge runs without being installed.", "Install it: pip install ."
        ) from error
