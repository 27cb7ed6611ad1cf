"""The C++ kernels of this folder, compiled for this machine when first used and kept in the user's cache.

Nothing here is needed to run a model: without a compiler, or with QVL_KERNELS=off, `library()` is None and the
callers take their PyTorch path. A library is named by everything that went into it (sources, flags, compiler,
processor, OpenMP), so a change of any of them compiles anew and an old file is never picked up. It is written
beside its place and renamed: two processes may compile at once, and both end with a whole file. Its last bytes are the
digest of the others: a damaged library would end the process when it is run, so it is never loaded.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from qvl.errors import ConfigError

log = logging.getLogger(__name__)

FOLDER = Path(__file__).parent
FLAGS = (
    *("-std=c++17", "-O2", "-ftree-vectorize", "-march=native", "-fopenmp", "-fPIC"),
    # neither changes a result: they let the compiler round and take roots with single instructions
    *("-fno-math-errno", "-fno-trapping-math"),
    # a product is rounded before it is added, as it is in PyTorch; where a fused step is wanted it is written
    "-ffp-contract=off",
)
COMPILE_SECONDS = 300
VERSION_SECONDS = 20
DIGEST_BYTES = 32


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels; None where they can't be had or are switched off. Decided once a process."""
    setting = os.environ.get("QVL_KERNELS", "auto")
    if setting not in ("auto", "off"):
        raise ConfigError(f"QVL_KERNELS={setting!r}: known: auto, off")
    if setting == "off":
        return None
    try:
        return ctypes.CDLL(str(compiled()))
    except (Unavailable, OSError) as e:
        log.warning("no compiled kernels, PyTorch's are used instead, which are slower: %s", e)
        return None


class Unavailable(Exception):
    """Why there are no compiled kernels."""


def compiled(flags: tuple[str, ...] = FLAGS) -> Path:
    """Where the library lies, compiled if it isn't there. Raises: Unavailable."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        raise Unavailable("no g++ found (CXX names another compiler)")
    openmp = _openmp()
    sources = sorted([*FOLDER.glob("*.cpp"), *FOLDER.glob("*.h")])
    digest = hashlib.sha256()
    version = _run([compiler, "--version"], VERSION_SECONDS)
    for part in (*flags, compiler, str(openmp), _processor()):
        digest.update(part.encode() + b"\0")
    digest.update(version.encode())
    for source in sources:
        digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    folder = _cache_folder()
    place = folder / f"qvl-{digest.hexdigest()[:24]}.so"
    _sweep(folder)
    if _is_whole(place):
        return place
    units = [source for source in sources if source.suffix == ".cpp"]
    try:
        with tempfile.TemporaryDirectory(prefix="unfinished-", dir=folder) as work:
            objects = [Path(work) / f"{unit.stem}.o" for unit in units]
            commands = [[compiler, *flags, "-c", str(unit), "-o", str(o)] for unit, o in zip(units, objects)]
            with ThreadPoolExecutor(os.cpu_count()) as pool:  # a unit takes up to 4 s, all of them 13
                list(pool.map(lambda command: _run(command, COMPILE_SECONDS), commands))
            # torch brings its own OpenMP: sharing it shares its threads, two sets would spin against each other
            link = ["-Wl,--as-needed", str(openmp)] if openmp else []
            whole = Path(work) / place.name
            _run([compiler, *flags, "-shared", *map(str, objects), *link, "-o", str(whole)], COMPILE_SECONDS)
            with whole.open(
                "r+b"
            ) as file:  # the loader reads what an ELF header names, and nothing behind it
                file.seek(0, os.SEEK_END)
                file.write(hashlib.sha256(whole.read_bytes()).digest())
                file.flush()
                os.fsync(file.fileno())
            os.chmod(whole, 0o700)
            os.replace(whole, place)
    except OSError as e:
        raise Unavailable(f"{compiler} can't be run: {e}") from e
    return place


def _is_whole(library: Path) -> bool:
    try:
        content = library.read_bytes()
    except OSError:
        return False
    return hashlib.sha256(content[:-DIGEST_BYTES]).digest() == content[-DIGEST_BYTES:]


def _sweep(folder: Path) -> None:
    """Deletes what compilations that were killed have left."""
    for path in folder.glob("unfinished-*"):
        try:
            if time.time() - path.stat().st_mtime > 2 * COMPILE_SECONDS:
                shutil.rmtree(path, ignore_errors=True)
        except OSError:
            pass


def _run(command: list[str], seconds: float) -> str:
    """What it prints. It and all that it started end in time. Raises: Unavailable."""
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except OSError as e:
        raise Unavailable(f"{command[0]} can't be run: {e}") from e
    with process:
        try:
            out, error = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired as e:
            # a compiler is a driver: what it started would hold the pipes open
            os.killpg(process.pid, signal.SIGKILL)
            raise Unavailable(f"{' '.join(command[:2])}: no end after {seconds:g} s") from e
    if process.returncode:
        raise Unavailable(f"{command[0]} failed: {error.strip()[:400]}")
    return out


def _cache_folder() -> Path:
    """Made if need be, and writable by this user alone: what lies there is executed. Raises: Unavailable."""
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    folder = Path(root) / "qvl" / "kernels"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = folder.stat()
    except (OSError, RuntimeError) as e:
        raise Unavailable(f"{folder}: {e}") from e
    if found.st_uid != os.getuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise Unavailable(f"{folder} is writable by others: chmod 700 it, or set XDG_CACHE_HOME")
    return folder


def _processor() -> str:
    """What -march=native looks at."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    wanted = ("flags", "Features", "model name", "cpu family", "model\t")
    return "\n".join(dict.fromkeys(line for line in lines if line.startswith(wanted)))


def _openmp() -> Path | None:
    """The OpenMP library that torch has loaded into this process."""
    import torch  # noqa: F401 (loads it)

    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    for line in maps:
        path = line.split(maxsplit=5)[-1]
        if "libgomp" in Path(path).name:
            return Path(path)
    return None
