"""A run's folder: run.json (what was asked, how, and the result) and samples.jsonl (one line an item, as it ends).

A line is written in one piece and handed to the system at once, so that it outlives a killed process; it is forced to
the disk once a second and at the end, so that a power failure costs at most a second of answers. A torn last line is
dropped, and run.json is only ever replaced whole. One process writes a folder, which a lock makes sure of.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from qvl.errors import QvlError

FORMAT = 1
RUN, SAMPLES = "run.json", "samples.jsonl"
SYNC_S = 1.0


class RunError(QvlError):
    """A run's folder that can't be gone on with."""


def plain_value(value: Any) -> Any:
    """As JSON can hold it: numbers that aren't finite, and what JSON doesn't know, as text."""
    if isinstance(value, Mapping):
        return {str(k): plain_value(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain_value(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)


def to_line(record: Mapping[str, Any]) -> bytes:
    """One JSON object on one line; half a surrogate, which UTF-8 can't hold, as its escape."""
    text = json.dumps(plain_value(record), ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace") + b"\n"


def replace_file(path: Path, data: bytes) -> None:
    """The old content or the new one, whenever the process ends."""
    temporary = path.with_name(path.name + ".new")
    with open(temporary, "wb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())
    os.replace(temporary, path)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a samples.jsonl, without a torn last one. Raises: RunError for any other that is broken."""
    try:
        pieces = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as e:
        raise RunError(f"{path}: can't be read ({e.strerror})") from e
    records: list[dict[str, Any]] = []
    for number, piece in enumerate(pieces[:-1], 1):  # what stands after the last line's end was torn
        try:
            record = json.loads(piece)
            record["id"], record["score"]
        except (ValueError, TypeError, KeyError) as e:
            raise RunError(f"{path}:{number}: no line of a run; mend or remove it") from e
        records.append(record)
    return records


def read_run(folder: str | Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(run.json, lines of samples.jsonl) of a finished or interrupted run. Raises: RunError."""
    folder = Path(folder)
    about = _read_about(folder / RUN)
    if about is None:
        raise RunError(f"{folder}: no run in it; {RUN} is missing")
    return about, read_lines(folder / SAMPLES)


def _read_about(path: Path) -> dict[str, Any] | None:
    try:
        about = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as e:
        raise RunError(f"{path}: can't be read ({e})") from e
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise RunError(f"{path}: not written by this version of qvl eval")
    return about


def differences(before: Mapping[str, Any], now: Mapping[str, Any], at: str = "") -> list[str]:
    """`settings.max_pixels was 100, is 200`, one a difference."""
    found: list[str] = []
    for key in dict.fromkeys([*before, *now]):
        a, b = before.get(key), now.get(key)
        name = f"{at}{key}"
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += differences(a, b, f"{name}.")
        elif a != b:
            found.append(f"{name} was {_short(a)}, is {_short(b)}")
    return found


def _short(value: Any) -> str:
    text = "not set" if value is None else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "…"


class Journal:
    """The folder of one run, open for writing; `done` holds the lines that stand.

    identity: what makes answers comparable; another one than the folder's is refused. Lines with an error are taken
    out on opening, since their items are asked again. folder None: nothing is kept.
    """

    def __init__(
        self,
        folder: str | Path | None,
        identity: Mapping[str, Any],
        *,
        fresh: bool = False,
        ids: Iterable[str] = (),
        rescoring: bool = False,
    ):
        self.folder = None if folder is None else Path(folder)
        self.identity = plain_value(identity)
        self.done: dict[str, dict[str, Any]] = {}
        self.about: dict[str, Any] = {"format": FORMAT, **self.identity}
        self._file: Any = None
        self._lock: Any = None
        self._synced = time.monotonic()
        if self.folder is None:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._take_lock()
            self._open(fresh, set(ids), rescoring)
        except OSError as e:
            self.close()
            raise RunError(f"{self.folder}: can't be written ({e.strerror or e})") from e
        except BaseException:
            self.close()
            raise

    def _take_lock(self) -> None:
        assert self.folder is not None
        self._lock = open(self.folder / "run.lock", "w")  # noqa: SIM115 - held until close
        try:
            import fcntl

            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:
            pass  # no such lock on this system
        except OSError as e:
            raise RunError(f"{self.folder}: another process is writing this run") from e

    def _open(self, fresh: bool, ids: set[str], rescoring: bool) -> None:
        assert self.folder is not None
        path = self.folder / SAMPLES
        if fresh:
            for name in (SAMPLES, RUN):
                (self.folder / name).unlink(missing_ok=True)
        about = _read_about(self.folder / RUN)
        if about is None and path.exists():
            raise RunError(f"{path}: there is no {RUN} beside it; --fresh starts anew")
        if about is not None:
            if not rescoring:
                self._check_same(about)
            self.about = about
        records = read_lines(path)
        kept = {r["id"]: r for r in records if rescoring or not r.get("error")}
        if unknown := [i for i in kept if i not in ids]:
            raise RunError(f"{path}: holds {unknown[0]!r}, which isn't among the items; --fresh starts anew")
        self.done = kept
        whole = b"".join(map(to_line, kept.values()))
        if not path.exists() or path.read_bytes() != whole:
            replace_file(path, whole)
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - held until close
        if not rescoring:
            self.note(status="running")

    def _check_same(self, about: Mapping[str, Any]) -> None:
        if about.get("status") == "rescoring":
            raise RunError(f"{self.folder}: a rescoring was interrupted; run it again with --rescore")
        before = {key: about.get(key) for key in self.identity}
        changed = differences(before, self.identity)
        if not changed:
            return
        scorer = all(c.startswith("scorer.") for c in changed)
        way = "--rescore scores the stored answers again" if scorer else "-o FOLDER keeps both runs"
        raise RunError(
            f"{self.folder} holds a run with other settings: {'; '.join(changed)}. {way}, --fresh starts anew"
        )

    def note(self, **facts: Any) -> None:
        """Changes run.json."""
        self.about |= facts
        if self.folder is not None:
            text = json.dumps(plain_value(self.about), ensure_ascii=False, indent=1)
            replace_file(self.folder / RUN, text.encode("utf-8", "backslashreplace") + b"\n")

    def add(self, record: dict[str, Any]) -> None:
        self.done[record["id"]] = record
        if self._file is None:
            return
        self._file.write(to_line(record))  # one write of a file without a buffer: whole, or torn at its end
        if time.monotonic() - self._synced > SYNC_S:
            self.sync()

    def sync(self) -> None:
        if self._file is not None:
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()

    def rewrite(self, records: Sequence[Mapping[str, Any]]) -> None:
        """All lines at once, as rescoring does."""
        self.done = {r["id"]: dict(r) for r in records}
        if self.folder is not None:
            self._file.close()
            replace_file(self.folder / SAMPLES, b"".join(map(to_line, records)))
            self._file = open(self.folder / SAMPLES, "ab", buffering=0)  # noqa: SIM115

    def close(self) -> None:
        if self._file is not None:
            self.sync()
            self._file.close()
            self._file = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, e: BaseException | None, t: TracebackType | None
    ) -> None:
        self.close()
