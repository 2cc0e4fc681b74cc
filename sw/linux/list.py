"""Doubly linked lists in modelled memory (``struct list_head``): 8 bytes next, 8 bytes prev."""

from typing import NamedTuple

from sw.core import Core
from sw.structs import Struct

__all__ = [
    "LIST_HEAD",
    "Entry",
    "init_list_head",
    "list_add_tail",
    "list_del",
    "list_empty",
    "list_empty_careful",
    "list_first",
    "list_splice_tail_init",
]

LIST_HEAD = Struct(next=8, prev=8)


class Entry(NamedTuple):
    """An entry that a list led to."""

    address: int  #: 0 if there is none
    loaded: int  #: handle of the load that gave the address: what is loaded from there is ``after`` it


def init_list_head(core: Core, head: int) -> None:
    """Make an empty list."""
    core.put(head, LIST_HEAD.next, head)
    core.put(head, LIST_HEAD.prev, head)


async def list_add_tail(core: Core, entry: int, head: int) -> None:
    """Add ``entry`` as the last of the list at ``head``."""
    last = await core.get(head, LIST_HEAD.prev)
    core.put(head, LIST_HEAD.prev, entry)
    core.put(entry, LIST_HEAD.next, head)
    core.put(entry, LIST_HEAD.prev, last)
    core.put(last, LIST_HEAD.next, entry)


async def list_del(core: Core, entry: int, after: int = -1) -> bool:
    """Take ``entry``, known since load ``after``, out of its list; returns whether the list is empty now."""
    following, previous = await core.get_all(entry, LIST_HEAD.next, LIST_HEAD.prev, after=after)
    core.put(following, LIST_HEAD.prev, previous)
    core.put(previous, LIST_HEAD.next, following)
    return following == previous


async def list_first(core: Core, head: int) -> Entry:
    """The first entry."""
    first, loaded = await core.chase(*LIST_HEAD.next.at(head))
    return Entry(0 if first == head else first, loaded)


async def list_empty(core: Core, head: int) -> bool:
    """Whether the list has no entry."""
    return await core.get(head, LIST_HEAD.next) == head


async def list_empty_careful(core: Core, head: int) -> bool:
    """Whether the list has no entry and no other core still works on ``head``, without its lock."""
    following, previous = await core.get_all(head, LIST_HEAD.next, LIST_HEAD.prev)
    return following == head and previous == head


async def list_splice_tail_init(core: Core, source: int, head: int) -> None:
    """Move all entries of the list at ``source``, which has some, to the end of the one at ``head``."""
    first, final = await core.get_all(source, LIST_HEAD.next, LIST_HEAD.prev)
    last = await core.get(head, LIST_HEAD.prev)
    core.put(first, LIST_HEAD.prev, last)
    core.put(last, LIST_HEAD.next, first)
    core.put(final, LIST_HEAD.next, head)
    core.put(head, LIST_HEAD.prev, final)
    init_list_head(core, source)
