"""Every way software takes packets, behind one interface."""

from collections.abc import Mapping
from types import MappingProxyType

from sw.paths.af_xdp import AfXdpPath
from sw.paths.busypoll import BusyPollPath
from sw.paths.dpdk import DpdkPath
from sw.paths.interrupt import InterruptPath
from sw.paths.napi import NapiPath
from sw.paths.path import Path, PathError
from sw.paths.tcp import TcpPath
from sw.paths.xdp import XdpPath

__all__ = ["PATHS", "Path", "PathError", "path_named"]

#: By name, in the order in which results are shown.
PATHS: Mapping[str, type[Path]] = MappingProxyType(
    {path.name: path for path in (InterruptPath, NapiPath, BusyPollPath, TcpPath, XdpPath, AfXdpPath, DpdkPath)}
)


def path_named(name: str, application: str | None = None) -> type[Path]:
    """The path called ``name``, if it has that application.

    Raises:
        PathError: in one line that names those there are.
    """
    path = PATHS.get(name)
    if path is None:
        raise PathError(f"no path {name!r}; there are: {', '.join(PATHS)}")
    path.application(application)
    return path
