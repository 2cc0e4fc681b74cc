"""What is built once and found again by its content."""

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

__all__ = ["cache_root", "cached", "digest", "digest_files"]

REPOSITORY = Path(__file__).resolve().parents[2]


def cache_root() -> Path:
    """``$NICSCOPE_CACHE``; else ``.cache`` in the repository; else, installed, in the user's cache directory."""
    if os.environ.get("NICSCOPE_CACHE"):
        return Path(os.environ["NICSCOPE_CACHE"]).resolve()
    if (REPOSITORY / "pyproject.toml").is_file() and os.access(REPOSITORY, os.W_OK):
        return REPOSITORY / ".cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nicscope"


def digest(*parts: str | bytes) -> str:
    """A key for ``parts``, in order."""
    result = hashlib.sha256()
    for part in parts:
        raw = part.encode() if isinstance(part, str) else part
        result.update(len(raw).to_bytes(8, "little") + raw)
    return result.hexdigest()[:32]


def digest_files(paths: Iterable[Path], suffixes: tuple[str, ...] = (".py", ".v")) -> str:
    """A key for the names and contents of files, and of all files with ``suffixes`` below directories."""
    parts: list[str | bytes] = []
    for path in paths:
        files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.suffix in suffixes)
        for file in files:
            parts += [str(file.relative_to(path.parent)), file.read_bytes()]
    return digest(*parts)


def cached(kind: str, key: str, build: Callable[[Path], None]) -> Path:
    """Directory ``kind/key`` of the cache; if it is not there, ``build`` fills it.

    Nobody ever sees a directory half filled, and of several processes that want it one builds.
    """
    directory = cache_root() / kind / key
    if directory.is_dir():
        return directory
    directory.parent.mkdir(parents=True, exist_ok=True)
    with _lock(directory.with_suffix(".lock")):
        if directory.is_dir():
            return directory
        scratch = Path(tempfile.mkdtemp(prefix=f"{key[:8]}.", dir=directory.parent))
        try:
            build(scratch)
            scratch.rename(directory)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return directory


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
