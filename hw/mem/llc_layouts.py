"""Sizes and records of the last-level cache, derived once from the machine."""

from amaranth.hdl import Cat
from amaranth.lib import data, enum
from amaranth.utils import ceil_log2

from hw.bus.memory import PACKET_WIDTH
from hw.bus.tilelink import Cap
from hw.config import CLASSES_OF_SERVICE, MachineConfig

from .llc_bits import index_width
from .llc_hash import slice_of

__all__ = ["LlcLayouts", "SlotKind"]


class SlotKind(enum.Enum, shape=2):
    """What a slot works on."""

    ACQUIRE = 0
    DEVICE_READ = 1
    DEVICE_WRITE = 2
    RELEASE = 3


class LlcLayouts:
    """Sizes and records of one cache.

    Slots 0 to ``slots - 1`` serve Acquires and devices; those for the Releases of client c follow, as many as it may
    have outstanding (``l2.releases``), from ``slots + l2.releases * c`` on.
    """

    def __init__(self, config: MachineConfig):
        llc = config.llc
        self.clients = config.core.count
        self.slots = llc.slots
        self.client_releases = config.l2.releases
        self.release_slots = self.client_releases * self.clients
        self.all_slots = self.slots + self.release_slots
        self.slices, self.inclusive = llc.slices, llc.inclusion == "inclusive"
        #: Sets are those of one slice; a *row* is a set of some slice.
        self.ways, self.sets = llc.ways, llc.sets
        self.filter_ways, self.filter_sets = llc.snoop_filter_ways, llc.snoop_filter_sets
        self.rows, self.filter_rows = self.slices * self.sets, self.slices * self.filter_sets
        self.set_width = ceil_log2(self.sets)
        self.filter_set_width = ceil_log2(self.filter_sets)
        #: Bits of a line address inside DRAM: what lies above is ignored.
        self.line_width = max(ceil_log2(config.dram.lines), self.set_width + 1)
        self.tag_width = self.line_width - self.set_width
        self.filter_tag_width = self.line_width - self.filter_set_width
        self.slot_width = index_width(self.all_slots)
        self.way_width = index_width(self.ways)
        self.client_width = index_width(self.clients)
        self.slice_width = ceil_log2(self.slices)
        self.lines = self.rows * self.ways

        #: Who allocated a line: 0 a device, n + 1 a core of class of service n.
        self.owner_width = ceil_log2(1 + CLASSES_OF_SERVICE)
        #: Beside tag and valid. ``unread``: written by a device, not read since.
        self.cache_fields = {"dirty": 1, "unread": 1, "owner": self.owner_width}
        #: Beside tag and valid. ``exclusive``: the one holder may write, and may have written.
        self.filter_fields = {"sharers": self.clients, "exclusive": 1}

        #: What the registers say. Masks are of the ways in which lines may be allocated.
        self.control = data.StructLayout(
            {
                "io_mask": self.ways,
                "core_masks": data.ArrayLayout(self.ways, self.clients),
                "core_classes": data.ArrayLayout(ceil_log2(CLASSES_OF_SERVICE), self.clients),
                "allocating_writes": 1,  # device writes go to the cache
            }
        )
        #: ... at the start.
        self.control_init = {
            "io_mask": llc.io_mask,
            "core_masks": [llc.class_mask(llc.core_class(core)) for core in range(self.clients)],
            "core_classes": [llc.core_class(core) for core in range(self.clients)],
            "allocating_writes": llc.ddio,
        }
        #: What a slot was asked; constant while it is taken.
        self.request = data.StructLayout(
            {
                "kind": SlotKind,
                "line": self.line_width,
                "client": self.client_width,
                "tag": 8,  # Acquire, Release: ``source``; device read: ``tag``
                "packet": PACKET_WIDTH,
                "exclusive": 1,  # Acquire: for writing
                "full": 1,  # device write: of the whole line
                "empty": 1,  # device write past the caches: of nothing, only to write the line back
                "around": 1,  # device write: past the caches, to DRAM
                "with_data": 1,  # Release: carries the dirty line
                "keeps": 1,  # Release: the client stays a sharer
            }
        )
        #: How far a slot is.
        self.progress = data.StructLayout(
            {
                "probed": 1,  # the holders of its line have answered
                "kept": 1,  # the probed owner stays a sharer
                "evicting": 1,  # it calls a line back to make room, in the snoop filter or
                "replacing": 1,  # ... in the (inclusive) cache
                "have_line": 1,  # its line buffer holds the line
                "dirty": 1,  # what a core returned (while evicting: in the spare buffer) is newer than the cache
                "fetched": 1,  # DRAM has answered
                "taken": 1,  # Release: a probe's transaction took the data
                "oldest": 1,  # device write: all earlier ones are visible
            }
        )
        #: What a pass does outside the tag arrays, one cycle after it decided.
        self.actions = data.StructLayout(
            {
                "probe": self.clients,  # whom to probe
                "probe_line": self.line_width,
                "cap": Cap,  # of the probes, or of the Grant
                "load": 1,  # cache {way, set} to line buffer
                "load_spare": 1,
                "fill": 1,  # line buffer to cache {way, set}
                "fill_spare": 1,
                "way": self.way_width,
                "dram_write": 1,  # line buffer to DRAM
                "write_spare": 1,
                "write_line": self.line_width,
                "dram_read": 1,
                "grant": 1,
                "release_ack": 1,
                "respond": 1,
                "commit": 1,  # a device write is visible
                "unlock": 1,  # the set is free for others
                "free": 1,  # and so is the slot
            }
        )
        #: What a pass changes in the progress of its slot.
        self.next = data.StructLayout({"probed": 1, "evicting": 1, "replacing": 1, "evicted": 1, "prepared": 1})
        #: What a pass tells the observers.
        self.events = data.StructLayout(
            {
                "core_hit": 1,
                "core_miss": 1,
                "write_update": 1,
                "write_allocate": 1,
                "write_dram": 1,
                "read_hit": 1,
                "read_miss": 1,
                "back_invalidate": 1,
                "evict": 1,
                "evict_dirty": 1,
                "evict_unread": 1,
                "enter": 1,  # a way holds another line than before
                "leave": 1,  # a way no longer holds the line it held
            }
        )
        #: What enters and leaves, for the count of occupied ways.
        self.occupancy = data.StructLayout(
            {"way": self.way_width, "enter": 1, "new": self.owner_width, "leave": 1, "old": self.owner_width}
        )

    def slice(self, line):
        """The slice of a line."""
        return slice_of(line, self.slices)

    def row(self, line, slice_):
        """Where a line's set lies in the arrays of the cache."""
        return Cat(line[: self.set_width], slice_)

    def filter_row(self, line, slice_):
        """Where a line's set lies in the arrays of the snoop filter."""
        return Cat(line[: self.filter_set_width], slice_)

    def place(self, line, slice_, way):
        """Where a line lies that is in a way of its set."""
        within = way if self.slices == 1 else slice_ * self.ways + way
        return Cat(line[: self.set_width], within)
