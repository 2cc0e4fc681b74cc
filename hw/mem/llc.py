"""The last-level cache: point of coherence between private caches, devices and DRAM."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from hw.bus.memory import PACKET_WIDTH, DeviceMemory, DramPort, MemoryOp
from hw.bus.tilelink import (
    LINE_BITS,
    SINK_WIDTH,
    SOURCE_WIDTH,
    Cap,
    ChannelC,
    Grow,
    OpcodeB,
    OpcodeC,
    OpcodeD,
    Shrink,
    TileLink,
)
from hw.config import CLASSES_OF_SERVICE, MachineConfig
from hw.lib.probe import Counter, Gauge, Probe
from hw.lib.ram import RAM
from hw.lib.time import NOW_WIDTH, Timer

from .llc_bits import encode, lowest, one_hot, round_robin
from .llc_decide import Decide
from .llc_layouts import LlcLayouts, SlotKind
from .llc_line_buffers import LineBuffers
from .llc_output import DramOutput, LineOutput
from .llc_queue import Queue
from .llc_tags import TagArray

__all__ = ["PIPELINE_LATENCY", "LastLevelCache"]

#: Uncore cycles from Acquire accepted to Grant offered when nothing is in the way: slot written, rows read,
#: decided, line read from the cache, line buffer read, output register loaded.
PIPELINE_LATENCY = 6


class LastLevelCache(wiring.Component):
    """A shared write-back cache with a snoop filter, and DDIO for devices. Domain ``uncore``.

    **Transactions.** An Acquire or a device's request takes one of ``llc.slots`` slots, waits there until a lookup of
    the configured latency would be due, and then makes passes through one pipeline (:class:`Decide`): read the rows
    of its set, decide, act. What it waits for in between (ProbeAck, DRAM, its turn to commit) makes it ready for the
    next pass. Its line lies in its *line buffer*; a second, *spare* buffer holds a line that leaves the cache for it.
    A slot locks its set of the snoop filter (which fixes the low bits of the set of the cache), in all slices, until it
    is done: a request for a locked set waits at the port. So no two slots ever work on one row of either array.

    **Slices.** A hash of the address (:mod:`~hw.mem.llc_hash`) says in which of ``llc.slices`` equal parts of the
    arrays a line belongs. All are served by the one pipeline, a transaction per cycle.

    **Coherence.** The snoop filter knows every line a private cache may hold: its sharers, and whether the one holder
    may write. It is never wrong towards "nobody": lines leave it by a Release, or by a Probe (back-invalidation).
    Clients Release clean lines too. With ``llc.inclusion = "non-inclusive"`` evicting a line from the last level leaves
    private copies alone. With ``"inclusive"`` every line of the snoop filter is in the cache: who needs a way of a line
    that private caches hold calls it back first. In both a core's miss fills the cache, and a hit leaves the line
    there.

    **Ways.** ``control`` says in which ways a core or a device may allocate
    (:class:`~hw.mem.llc_registers.LlcRegisters`); a line is found in whichever it is.

    **Devices.** A read never allocates. With DDIO a write updates the line in whichever way holds it, and else
    allocates in the ways of ``io_mask`` only; without (``allocating_writes`` is low as it is accepted), and ``around``
    the caches, it goes to DRAM and invalidates the line. Part of a line is merged with the current line first; no bytes
    at all only write back what is dirty. Writes prepare in parallel and become visible in the order in which they were
    accepted.

    **Releases.** Each client has ``l2.releases`` slots of its own for them. A Release waits there for the lock of its
    set: it tries once, and again whenever some set is unlocked. If the transaction that holds the lock probes that
    client meanwhile, the answer comes behind the Release and says "nothing here"; the transaction then takes the line
    from the Release's buffer.

    **No deadlock.** A slot waits only for: an answer to a Probe, which clients give whatever else they wait for and
    which channel C always takes (a Release before it on that channel has its slot, since a client has at most
    ``l2.releases`` outstanding and gets the ReleaseAck after its slot is free but for a victim on its way to DRAM);
    DRAM, which waits for nobody; a GrantAck, always taken; older device writes, which have their slots and locks
    already; and receivers of channel D and of device responses, which must accept without waiting for anything new
    from here. A Release waits for a lock, never the other way round. Victims reach DRAM before any later read of
    their line, as all requests to DRAM leave in one order.

    **Timing.** Grant is offered ``llc.latency`` cycles after Acquire was accepted, to the cycle, for a line that hits,
    needs no probe, and meets no other traffic; the same wait is before every other lookup but a Release's.

    ``quiet`` while it only waits for DRAM, ProbeAcks, GrantAcks, a lock, or its timer.

    Line addresses beyond DRAM wrap: requesters must not send any.

    Raises:
        ValueError: when ``llc.latency`` is below ``PIPELINE_LATENCY``, or there are more ``llc.slots`` than ``sink``
            can name.
    """

    def __init__(self, config: MachineConfig):
        llc = config.llc
        if llc.latency < PIPELINE_LATENCY:
            raise ValueError(f"llc.latency must be at least the pipeline's {PIPELINE_LATENCY}, not {llc.latency}")
        self.layouts = layouts = LlcLayouts(config)
        if layouts.slots > 1 << SINK_WIDTH:
            raise ValueError(f"llc.slots = {llc.slots} exceed the {1 << SINK_WIDTH} that a GrantAck can name")
        super().__init__(
            {
                "client": In(TileLink()).array(layouts.clients),
                "device": In(DeviceMemory()),
                "dram": Out(DramPort()).array(1),
                "control": In(layouts.control, init=layouts.control_init),
                "now": In(NOW_WIDTH),
                "quiet": Out(1),
            }
        )
        self._wait_cycles = llc.latency - PIPELINE_LATENCY

        # Arrays
        self.tags = TagArray(
            sets=layouts.rows,
            ways=layouts.ways,
            tag_width=layouts.tag_width,
            fields=layouts.cache_fields,
            domain="uncore",
            replacement=llc.replacement,
        )
        self.snoop_filter = TagArray(
            sets=layouts.filter_rows,
            ways=layouts.filter_ways,
            tag_width=layouts.filter_tag_width,
            fields=layouts.filter_fields,
            domain="uncore",
            also=layouts.inclusive,
        )
        self.data = RAM(width=LINE_BITS, depth=layouts.lines, domain="uncore")
        self.line_buffers = LineBuffers(layouts, layouts.clients + 2, "uncore")
        self.decide = Decide(layouts, self.tags, self.snoop_filter)

        # Queues
        grant = data.StructLayout({"opcode": OpcodeD, "param": Cap, "source": SOURCE_WIDTH, "sink": SINK_WIDTH})
        response = data.StructLayout({"tag": 8, "packet": PACKET_WIDTH})
        probe = data.StructLayout({"line": layouts.line_width, "param": Cap})
        waiting = data.StructLayout({"slot": layouts.slot_width, "deadline": NOW_WIDTH})
        self.channel_d = [LineOutput(grant, layouts, "uncore") for _ in range(layouts.clients)]
        self.channel_b = [Queue(probe, layouts.slots, "uncore") for _ in range(layouts.clients)]
        self.response = LineOutput(response, layouts, "uncore")
        self.dram_requests = DramOutput(layouts, "uncore")
        self.write_order = Queue(layouts.slot_width, layouts.slots, "uncore")
        self.waiting = Queue(waiting, layouts.slots, "uncore")
        self.lookup_timer = Timer("uncore")

        self._observe()
        self._registers()
        self._events()

    def _observe(self):
        line = self.layouts.line_width
        way = self.layouts.way_width
        self.transaction = Probe(
            "uncore", "a request got the lock of its set", kind=SlotKind, line=line, client=self.layouts.client_width
        )
        self.device_write = Probe(
            "uncore", "a device write becomes visible", line=line, packet=PACKET_WIDTH, hit=1, way=way
        )
        self.device_read = Probe("uncore", "a device read has its line", line=line, packet=PACKET_WIDTH, hit=1)
        self.dram_read = Probe("uncore", "a read handed to DRAM", line=line)
        self.dram_write = Probe("uncore", "a write handed to DRAM", line=line)
        self.evict = Probe("uncore", "a line leaves the cache to make room", line=line, way=way)
        self.core_hits = Counter("uncore", "Acquires served without DRAM")
        self.core_misses = Counter("uncore", "Acquires that had to read DRAM")
        self.device_write_update = Counter("uncore", "device writes that hit and updated the line (DDIO)")
        self.device_write_allocate = Counter("uncore", "device writes that missed and allocated (DDIO)")
        self.itom_hit = Counter("uncore", "... of whole lines that hit (pcm-pcie: PCIe writes, ItoM, hit)")
        self.itom_miss = Counter("uncore", "... of whole lines that missed (ItoM, miss)")
        self.rfo_hit = Counter("uncore", "... of parts of lines that hit (pcm-pcie: PCIe partial writes, RFO, hit)")
        self.rfo_miss = Counter("uncore", "... of parts of lines that missed (RFO, miss)")
        self.device_write_dram = Counter("uncore", "device writes sent to DRAM (DDIO off, or around the caches)")
        self.device_read_hit = Counter("uncore", "device reads served without DRAM (pcm-pcie: PCIeRdCur, hit)")
        self.device_read_miss = Counter("uncore", "device reads that had to read DRAM (PCIeRdCur, miss)")
        self.probes_sent = Counter("uncore", "Probes sent to private caches")
        self.back_invalidations = Counter(
            "uncore", "lines called back to make room in the snoop filter or in an inclusive cache"
        )
        self.dram_reads = Counter("uncore", "lines read from DRAM")
        self.dram_writes = Counter("uncore", "lines written to DRAM")
        self.evict_dirty = Counter("uncore", "dirty lines evicted")
        self.evict_by_core = Counter("uncore", "lines evicted by what a core missed")
        self.evict_by_release = Counter("uncore", "lines evicted by what a private cache evicted")
        self.evict_by_device = Counter("uncore", "lines evicted by a device's write")
        self.io_lines_evicted_unread = Counter(
            "uncore", "lines evicted after a device wrote them and before anyone read them (leaky DMA)"
        )
        ways = range(self.layouts.ways)
        self.occupancy_io = [Gauge("uncore", f"lines in way {way} that a device allocated") for way in ways]
        self.occupancy_core = [Gauge("uncore", f"lines in way {way} that a core allocated") for way in ways]
        self.occupancy_class = [
            Gauge("uncore", f"lines that cores of class of service {number} allocated")
            for number in range(CLASSES_OF_SERVICE)
        ]

    def _registers(self):
        slots = self.layouts.all_slots
        # One bit per slot
        self._free = Signal(slots, init=(1 << slots) - 1)
        self._ready = Signal(slots)  # wants a pass
        self._draining = Signal(slots)  # has a line on its way to DRAM in one of its buffers
        self._filling = Signal(slots)  # a line it called back goes to the cache, where its next pass might replace it
        self._probed = Signal(slots)
        self._kept = Signal(slots)
        self._evicting = Signal(slots)
        self._replacing = Signal(slots)
        self._have_line = Signal(slots)
        self._dirty = Signal(slots)
        self._fetched = Signal(slots)
        self._taken = Signal(slots)
        self._prepared = Signal(slots)  # waits for its turn to commit
        self._awaiting = [Signal(slots, name=f"awaiting{i}") for i in range(self.layouts.clients)]
        # One bit per slot of Releases
        self._released = Signal(self.layouts.release_slots)  # waits for the lock of its set
        self._refused = Signal(self.layouts.release_slots)  # ... which was taken; nothing has been unlocked since
        self._released_data = Signal(self.layouts.release_slots)
        self._released_line = [
            Signal(self.layouts.line_width, name=f"released_line{i}") for i in range(self.layouts.release_slots)
        ]
        # Stages of the pipeline
        self._s1_valid = Signal()
        self._s1_slot = Signal(self.layouts.slot_width)
        self._s1_request = Signal(self.layouts.request)
        self._s1_line = Signal(self.layouts.line_width)
        self._s1_slice = Signal(self.layouts.slice_width)
        self._s2_valid = Signal()
        self._s2_slot = Signal(self.layouts.slot_width)
        self._s2_request = Signal(self.layouts.request)
        self._s2_line = Signal(self.layouts.line_width)
        self._s2_slice = Signal(self.layouts.slice_width)
        self._s2_occupancy = Signal(self.layouts.occupancy)
        self._s2 = Signal(self.layouts.actions)
        self._s3_fill = Signal()
        self._s3_place = Signal.like(self.line_buffers.fill_place)
        self._s3_address = Signal(self.data.address_width)
        self._s4_fill = Signal()
        self._s4_address = Signal(self.data.address_width)

    def _events(self):
        layouts = self.layouts
        slots = layouts.all_slots
        # What happens in this cycle, one bit per slot
        self._chosen = Signal(slots)  # makes a pass
        self._s1_mask = Signal(slots)  # is in stage 1
        self._s2_mask = Signal(slots)  # is in stage 2
        self._taking = Signal(slots)  # is given to a new request
        self._releasing = Signal(slots)  # is given to a Release
        self._activated = Signal(slots)  # a Release gets its lock
        self._taken_from = Signal(slots)  # a Release loses its data to a transaction
        self._due = Signal(slots)  # its lookup is due
        self._acking = Signal(slots)  # gets a ProbeAck
        self._answered = Signal(slots)  # ... the last it waited for
        self._returned = Signal(slots)  # ... and a dirty line
        self._staying = Signal(slots)  # ... and that client stays a sharer
        self._arrived = Signal(slots)  # DRAM answers
        self._unlocked = Signal()  # some set
        self._turn = Signal(slots)  # is the oldest device write, and prepared
        self._acknowledged = Signal(slots)  # gets its GrantAck
        # The request accepted
        self._acceptable = Signal()  # there is one
        self._accepted_slot = Signal(layouts.slot_width)
        # The message on channel C
        self._c_message = Signal(ChannelC)
        self._c_client = Signal(layouts.client_width)
        self._c_accept = Signal()
        self._c_with_data = Signal()
        self._c_slot = Signal(layouts.slot_width)
        self._c_spare = Signal()
        self._take = Signal()  # its transaction takes the data of the Release in ``_take_slot``
        self._take_slot = Signal(layouts.slot_width)

    def elaborate(self, platform):
        """Join the parts; each method below is one of them."""
        m = Module()
        for part in (self.tags, self.snoop_filter, self.data, self.line_buffers, self.decide):
            m.submodules += part
        for part in (*self.channel_b, *self.channel_d, self.response, self.dram_requests):
            m.submodules += part
        m.submodules += [self.write_order, self.waiting]

        depth = 1 << self.layouts.slot_width
        m.submodules.requests = self._requests = Memory(shape=self.layouts.request, depth=depth, init=[])
        m.submodules.victims = self._victims = Memory(shape=self.layouts.line_width, depth=depth, init=[])
        m.submodules.locks = self._locks = Memory(shape=1, depth=self.layouts.filter_sets, init=[])
        m.submodules.holders = self._holders = Memory(
            shape=self.layouts.slot_width, depth=self.layouts.filter_sets, init=[]
        )

        self._choose(m)
        self._pass(m)
        self._act(m)
        self._accept(m)
        self._take_channel_c(m)
        self._take_channel_e(m)
        self._connect_line_buffers(m)
        self._connect_outputs(m)
        self._update_slots(m)
        self._count(m)
        self._tell_quiet(m)
        return m

    # The pipeline

    def _choose(self, m):
        """Stage 0: a ready slot, in turn, reads the rows of its set."""
        candidates = Signal(self.layouts.all_slots)
        m.d.comb += candidates.eq(self._ready & ~self._draining & ~self._filling)
        slot = round_robin(m, candidates, self._s1_slot, "chosen")
        request = self._requests.read_port(domain="comb")
        victim = self._victims.read_port(domain="comb")
        line = Signal(self.layouts.line_width)
        slice_ = Signal(self.layouts.slice_width)
        m.d.comb += [request.addr.eq(slot), victim.addr.eq(slot)]
        m.d.uncore += self._s1_valid.eq(candidates.any())
        with m.If(candidates.any()):
            m.d.comb += [
                self._chosen.eq(one_hot(slot, self.layouts.all_slots)),
                line.eq(Mux((self._evicting & self._chosen).any(), victim.data, request.data.line)),
                slice_.eq(self.layouts.slice(line)),
                self.tags.read.eq(1),
                self.tags.set.eq(self.layouts.row(line, slice_)),
                self.snoop_filter.read.eq(1),
                self.snoop_filter.set.eq(self.layouts.filter_row(line, slice_)),
            ]
            m.d.uncore += [
                self._s1_slot.eq(slot),
                self._s1_request.eq(request.data),
                self._s1_line.eq(line),
                self._s1_slice.eq(slice_),
            ]

    def _pass(self, m):
        """Stage 1: compare tags, decide, update the arrays, read the line."""
        request, line, decide = self._s1_request, self._s1_line, self.decide
        device_write = request.kind == SlotKind.DEVICE_WRITE
        slot = self._s1_mask
        m.d.comb += [
            self.snoop_filter.candidates.eq(~0),
            self.data.read_address.eq(self.layouts.place(line, self._s1_slice, decide.actions.way)),
        ]
        oldest = self.write_order.output
        m.d.uncore += self._s2_valid.eq(self._s1_valid)
        with m.If(self._s1_valid):
            m.d.comb += [
                slot.eq(one_hot(self._s1_slot, self.layouts.all_slots)),
                self.tags.active.eq(1),
                self.tags.tag.eq(line >> self.layouts.set_width),
                self.snoop_filter.active.eq(1),
                self.snoop_filter.tag.eq(line >> self.layouts.filter_set_width),
                decide.valid.eq(1),
                decide.request.eq(request),
                decide.line.eq(line),
                decide.cache.eq(self.tags.result),
                decide.filter.eq(self.snoop_filter.result),
                self.tags.update.eq(decide.cache_update),
                self.snoop_filter.update.eq(decide.filter_update),
                self.data.read_enable.eq(decide.actions.load),
                oldest.ready.eq(decide.actions.commit),
            ]
            with m.If(device_write):
                m.d.comb += self.tags.candidates.eq(self.control.io_mask)
            with m.Else():
                m.d.comb += [
                    self.tags.candidates.eq(self.control.core_masks[request.client]),
                    decide.owner.eq(self.control.core_classes[request.client] + 1),
                ]
            if self.layouts.inclusive:
                victim_line = Cat(line[: self.layouts.set_width], self.tags.result.victim.tag)
                m.d.comb += [
                    self.snoop_filter.also_tag.eq(victim_line >> self.layouts.filter_set_width),
                    decide.victim_held.eq(self.snoop_filter.also_hit),
                    decide.victim_sharers.eq(self.snoop_filter.also_found.sharers),
                ]
            progress = decide.progress
            for name in ("probed", "kept", "evicting", "replacing", "have_line", "dirty", "fetched", "taken"):
                m.d.comb += progress[name].eq((getattr(self, f"_{name}") & slot).any())
            m.d.comb += progress.oldest.eq(oldest.valid & (oldest.payload == self._s1_slot))
            m.d.uncore += [
                self._s2_slot.eq(self._s1_slot),
                self._s2_request.eq(request),
                self._s2_line.eq(line),
                self._s2_slice.eq(self._s1_slice),
                self._s2.eq(decide.actions),
                self._s2_occupancy.way.eq(decide.actions.way),
                self._s2_occupancy.enter.eq(decide.events.enter),
                self._s2_occupancy.new.eq(decide.owner),
                self._s2_occupancy.leave.eq(decide.events.leave),
                self._s2_occupancy.old.eq(
                    Mux(self.tags.result.hit, self.tags.result.found.owner, self.tags.result.victim.owner)
                ),
            ]
        victim = self._victims.write_port(domain="uncore")
        m.d.comb += [
            victim.en.eq(self._s1_valid & decide.next.evicting),
            victim.addr.eq(self._s1_slot),
            victim.data.eq(decide.actions.probe_line),
        ]

    def _act(self, m):
        """Stage 2: send what was decided. Stages 3 and 4: line buffer to cache."""
        act, request, slot = self._s2, self._s2_request, self._s2_mask
        unlock = self._locks.write_port(domain="uncore")
        m.d.comb += [unlock.addr.eq(self._s2_line), unlock.data.eq(0)]
        m.d.uncore += [self._s3_fill.eq(0), self._s4_fill.eq(self._s3_fill)]
        with m.If(self._s2_valid):
            m.d.comb += [
                slot.eq(one_hot(self._s2_slot, self.layouts.all_slots)),
                unlock.en.eq(act.unlock),
                self.response.push.eq(act.respond),
                self.dram_requests.push.eq(act.dram_write | act.dram_read),
                self.device.write_done.eq(act.commit),
            ]
            for client in range(self.layouts.clients):
                m.d.comb += [
                    self.channel_b[client].push.eq(act.probe[client]),
                    self.channel_d[client].push.eq((act.grant | act.release_ack) & (request.client == client)),
                ]
            m.d.uncore += [
                self._s3_fill.eq(act.fill),
                self._s3_place.spare.eq(act.fill_spare),
                self._s3_place.slot.eq(self._s2_slot),
                self._s3_address.eq(self.layouts.place(self._s2_line, self._s2_slice, act.way)),
            ]
        with m.If(self._s3_fill):
            m.d.uncore += self._s4_address.eq(self._s3_address)
        m.d.comb += [
            self.data.write_enable.eq(self._s4_fill),
            self.data.write_address.eq(self._s4_address),
            self.data.write_data.eq(self.line_buffers.line),
        ]
        for client in range(self.layouts.clients):
            probe, message = self.channel_b[client].entry, self.channel_d[client].entry
            m.d.comb += [
                probe.line.eq(act.probe_line),
                probe.param.eq(act.cap),
                message.slot.eq(self._s2_slot),
                message.with_line.eq(act.grant),
                message.header.opcode.eq(Mux(act.grant, OpcodeD.GRANT_DATA, OpcodeD.RELEASE_ACK)),
                message.header.param.eq(act.cap),
                message.header.source.eq(request.tag),
                message.header.sink.eq(self._s2_slot),
            ]
        response, dram = self.response.entry, self.dram_requests.entry
        m.d.comb += [
            response.slot.eq(self._s2_slot),
            response.with_line.eq(1),
            response.header.tag.eq(request.tag),
            response.header.packet.eq(request.packet),
            dram.slot.eq(self._s2_slot),
            dram.write.eq(act.dram_write),
            dram.write_line.eq(act.write_line),
            dram.spare.eq(act.write_spare),
            dram.read.eq(act.dram_read),
            dram.read_line.eq(request.line),
        ]

    # What comes in

    def _accept(self, m):
        """Give a lock, and to new requests a slot: Releases first, then clients and device in turn."""
        layouts = self.layouts
        clients, set_width = layouts.clients, layouts.filter_set_width

        def locked(line):
            port = self._locks.read_port(domain="comb")
            m.d.comb += port.addr.eq(line[:set_width])
            return port.data

        # Who could go
        available = Signal(layouts.slots)
        wanting = Signal(clients + 1)
        releasable = Signal(layouts.release_slots)
        tried = Signal(layouts.release_slots)
        waiting_release = self._requests.read_port(domain="comb")
        release = Signal()
        device = self.device.request
        m.d.comb += [
            available.eq(self._free & ~self._draining),
            releasable.eq(self._released & ~self._refused),
            tried.eq(lowest(releasable)),
            waiting_release.addr.eq(layouts.slots + encode(tried)),
            release.eq(releasable.any() & ~locked(waiting_release.data.line)),
            wanting.eq(
                Cat(
                    *(self.client[i].a.valid & ~locked(self.client[i].a.payload.line) for i in range(clients)),
                    device.valid
                    & ~locked(device.payload.line)
                    & ((device.payload.op == MemoryOp.READ) | self.line_buffers.idle),
                )
            ),
        ]
        m.d.comb += self._acceptable.eq(releasable.any() | (wanting.any() & available.any()))

        # Who goes
        last = Signal(range(clients + 1))
        index = round_robin(m, wanting, last, "accepted")
        slot = self._accepted_slot
        line = Signal(layouts.line_width)
        new = Signal(layouts.request)
        accept = Signal()
        m.d.comb += [
            accept.eq(~release & wanting.any() & available.any()),
            line.eq(new.line),
        ]
        with m.If(release):
            m.d.comb += [
                self._activated.eq(tried << layouts.slots),
                slot.eq(waiting_release.addr),
                line.eq(waiting_release.data.line),
                new.kind.eq(SlotKind.RELEASE),
                new.client.eq(waiting_release.data.client),
            ]
        with m.Elif(accept):
            m.d.uncore += last.eq(index)
            m.d.comb += [self._taking.eq(lowest(available)), slot.eq(encode(self._taking[: layouts.slots]))]
            with m.Switch(index):
                for i in range(clients):
                    acquire = self.client[i].a
                    with m.Case(i):
                        m.d.comb += [
                            acquire.ready.eq(1),
                            new.kind.eq(SlotKind.ACQUIRE),
                            new.line.eq(acquire.payload.line),
                            new.client.eq(i),
                            new.tag.eq(acquire.payload.source),
                            new.exclusive.eq(acquire.payload.param != Grow.N_TO_B),
                        ]
                with m.Case(clients):
                    write = device.payload.op == MemoryOp.WRITE
                    around = device.payload.around | ~self.control.allocating_writes
                    m.d.comb += [
                        device.ready.eq(1),
                        new.kind.eq(Mux(write, SlotKind.DEVICE_WRITE, SlotKind.DEVICE_READ)),
                        new.line.eq(device.payload.line),
                        new.tag.eq(device.payload.tag),
                        new.packet.eq(device.payload.packet),
                        new.full.eq(device.payload.mask.all()),
                        new.empty.eq(~device.payload.mask.any() & around),
                        new.around.eq(around),
                        self.write_order.push.eq(write),
                    ]

        refused = self._refused | Mux(release, 0, tried)
        m.d.uncore += self._refused.eq(Mux(self._unlocked, 0, refused) & ~self._releasing[layouts.slots :])

        # Lock, slot, order of writes
        lock = self._locks.write_port(domain="uncore")
        holder = self._holders.write_port(domain="uncore")
        request = self._requests.write_port(domain="uncore")
        m.d.comb += [
            lock.en.eq(release | accept),
            lock.addr.eq(line),
            lock.data.eq(1),
            holder.en.eq(release | accept),
            holder.addr.eq(line),
            holder.data.eq(slot),
            request.en.eq(accept),
            request.addr.eq(slot),
            request.data.eq(new),
            self.write_order.entry.eq(slot),
        ]
        self.transaction.emit(m, release | accept, kind=new.kind, line=line, client=new.client)

        # The lookup is due after the configured latency
        timer, waiting = self.lookup_timer, self.waiting
        if self._wait_cycles:
            head = waiting.output
            m.d.comb += [
                waiting.push.eq(accept),
                waiting.entry.slot.eq(slot),
                waiting.entry.deadline.eq(self.now + self._wait_cycles),
                timer.armed.eq(head.valid),
                timer.deadline.eq(head.payload.deadline),
                head.ready.eq(self.now >= head.payload.deadline),
            ]
            with m.If(head.valid & head.ready):
                m.d.comb += self._due.eq(one_hot(head.payload.slot, layouts.all_slots))
        else:
            m.d.comb += self._due.eq(self._taking)

    def _take_channel_c(self, m):
        """Take one ProbeAck or Release per cycle, clients in turn."""
        layouts = self.layouts
        message, accept, index = self._c_message, self._c_accept, self._c_client
        free = (self._free & ~self._draining)[layouts.slots :]
        matching = Signal(layouts.release_slots)  # Releases by this client of this line that still wait
        place = Signal(layouts.release_slots)  # where a new Release goes
        is_ack = Signal()
        take = Signal()

        # Whose turn
        offered = Signal(layouts.clients)
        last = Signal(layouts.client_width)
        for client in range(layouts.clients):
            channel = self.client[client].c
            own = free[self._own_releases(client)]
            m.d.comb += offered[client].eq(channel.valid & (_is_ack(channel.payload) | own.any()))
        m.d.comb += index.eq(round_robin(m, offered, last, "answering"))
        with m.If(offered.any()):
            with m.Switch(index):
                for client in range(layouts.clients):
                    with m.Case(client):
                        channel = self.client[client].c
                        own = self._own_releases(client)
                        same = Cat(
                            line == channel.payload.line[: layouts.line_width] for line in self._released_line[own]
                        )
                        m.d.comb += [
                            message.eq(channel.payload),
                            channel.ready.eq(accept),
                            matching[own].eq(self._released[own] & same),
                            place[own].eq(lowest(free[own])),
                        ]
            m.d.comb += [
                is_ack.eq(_is_ack(message)),
                self._c_with_data.eq(
                    (message.opcode == OpcodeC.PROBE_ACK_DATA) | (message.opcode == OpcodeC.RELEASE_DATA)
                ),
                take.eq(is_ack & ~self._c_with_data & (matching & self._released_data).any()),
                accept.eq(~(self._c_with_data & self.line_buffers.busy) & ~(take & self.line_buffers.move_busy)),
            ]

        # What it does
        holder = self._holders.read_port(domain="comb")
        slot = self._acking
        m.d.comb += holder.addr.eq(message.line)
        with m.If(accept):
            m.d.uncore += last.eq(index)
            with m.If(is_ack):
                waiting = [Mux(index == i, 0, self._awaiting[i] & slot) for i in range(layouts.clients)]
                m.d.comb += [
                    slot.eq(one_hot(holder.data, layouts.all_slots)),
                    self._c_slot.eq(holder.data),
                    self._c_spare.eq((self._evicting & slot).any()),
                    self._taken_from.eq(matching << layouts.slots),
                    self._take.eq(take),
                    self._take_slot.eq(encode(matching) + layouts.slots),
                ]
                with m.If(~Cat(waiting).any()):
                    m.d.comb += self._answered.eq(slot)
                with m.If(self._c_with_data | take):
                    m.d.comb += self._returned.eq(slot)
                with m.If((message.param == Shrink.T_TO_B) | (message.param == Shrink.B_TO_B)):
                    m.d.comb += self._staying.eq(slot)
            with m.Else():
                m.d.comb += [
                    self._releasing.eq(place << layouts.slots),
                    self._c_slot.eq(encode(place) + layouts.slots),
                ]
                for i in range(layouts.release_slots):
                    with m.If(place[i]):
                        m.d.uncore += [
                            self._released_line[i].eq(message.line),
                            self._released_data[i].eq(self._c_with_data),
                        ]
        request = self._requests.write_port(domain="uncore")
        m.d.comb += [
            request.en.eq(accept & ~is_ack),
            request.addr.eq(self._c_slot),
            request.data.kind.eq(SlotKind.RELEASE),
            request.data.line.eq(message.line),
            request.data.client.eq(index),
            request.data.tag.eq(message.source),
            request.data.with_data.eq(self._c_with_data),
            request.data.keeps.eq(message.param == Shrink.T_TO_B),
        ]

    def _own_releases(self, client):
        """Where the slots for Releases of one client lie among those of all."""
        count = self.layouts.client_releases
        return slice(count * client, count * (client + 1))

    def _take_channel_e(self, m):
        """Take one GrantAck per cycle: its slot is free, and so is the set."""
        layouts = self.layouts
        offered = Signal(layouts.clients)
        first = lowest(offered)
        slot = Signal(layouts.slot_width)
        request = self._requests.read_port(domain="comb")
        unlock = self._locks.write_port(domain="uncore")
        m.d.comb += [
            offered.eq(Cat(client.e.valid for client in self.client)),
            request.addr.eq(slot),
            unlock.en.eq(offered.any()),
            unlock.addr.eq(request.data.line),
            unlock.data.eq(0),
            self._unlocked.eq(offered.any() | (self._s2_valid & self._s2.unlock)),
        ]
        for i, client in enumerate(self.client):
            m.d.comb += client.e.ready.eq(first[i])
            with m.If(first[i]):
                m.d.comb += slot.eq(client.e.payload.sink)
        with m.If(offered.any()):
            m.d.comb += self._acknowledged.eq(one_hot(slot, layouts.all_slots))

    def _connect_line_buffers(self, m):
        buffers, act, device = self.line_buffers, self._s2, self.device.request
        outputs = (*self.channel_d, self.response, self.dram_requests)
        write = self.write_order.push
        m.d.comb += [
            buffers.load.eq(self._s2_valid & act.load),
            buffers.load_next.eq(self._s1_valid & self.decide.actions.load),
            buffers.load_place.slot.eq(self._s2_slot),
            buffers.load_place.spare.eq(act.load_spare),
            buffers.load_line.eq(self.data.read_data),
            buffers.returned.eq(self._c_accept & self._c_with_data),
            buffers.returned_place.slot.eq(self._c_slot),
            buffers.returned_place.spare.eq(self._c_spare),
            buffers.returned_line.eq(self._c_message.data),
            buffers.accepted.eq(self._taking.any()),
            buffers.accepted_slot.eq(self._accepted_slot),
            buffers.accepted_mask.eq(Mux(write, device.payload.mask, 0)),
            buffers.accepted_line.eq(device.payload.data),
            buffers.fill.eq(self._s3_fill),
            buffers.fill_place.eq(self._s3_place),
            buffers.move.eq(self._take),
            buffers.move_from.eq(self._take_slot),
            buffers.move_to.slot.eq(self._c_slot),
            buffers.move_to.spare.eq(self._c_spare),
        ]
        wiring.connect(m, wiring.flipped(self.dram[0].response), buffers.arrived)
        with m.If(buffers.arrived.valid & buffers.arrived.ready):
            m.d.comb += self._arrived.eq(one_hot(buffers.arrived.payload.tag, self.layouts.all_slots))
        for i, output in enumerate(outputs):
            m.d.comb += [
                buffers.want[i].eq(output.want),
                buffers.want_place[i].slot.eq(output.slot),
                output.granted.eq(buffers.granted[i]),
                output.line.eq(buffers.line),
            ]
        m.d.comb += buffers.want_place[-1].spare.eq(self.dram_requests.spare)

    def _connect_outputs(self, m):
        for i, client in enumerate(self.client):
            grant, probe = self.channel_d[i].output, self.channel_b[i].output
            m.d.comb += [
                client.d.valid.eq(grant.valid),
                grant.ready.eq(client.d.ready),
                client.d.payload.data.eq(grant.payload.line),
                client.b.valid.eq(probe.valid),
                probe.ready.eq(client.b.ready),
                client.b.payload.opcode.eq(OpcodeB.PROBE_BLOCK),
                client.b.payload.param.eq(probe.payload.param),
                client.b.payload.line.eq(probe.payload.line),
            ]
            for name in ("opcode", "param", "source", "sink"):
                m.d.comb += client.d.payload[name].eq(grant.payload.header[name])
        response = self.response.output
        m.d.comb += [
            self.device.response.valid.eq(response.valid),
            response.ready.eq(self.device.response.ready),
            self.device.response.payload.data.eq(response.payload.line),
            self.device.response.payload.tag.eq(response.payload.header.tag),
            self.device.response.payload.packet.eq(response.payload.header.packet),
        ]
        wiring.connect(m, wiring.flipped(self.dram[0].request), self.dram_requests.output)

    # State

    def _update_slots(self, m):
        """All changes to the bits of the slots."""
        slots = self.layouts.all_slots
        act, next_, pass_, sent = self._s2, self.decide.next, self._s1_mask, self._s2_mask
        drained = Signal(slots)
        freed = Signal(slots)
        woken = Signal(slots)
        restarted = self._taking | self._releasing
        head = self.write_order.output
        with m.If(head.valid):
            m.d.comb += self._turn.eq(self._prepared & one_hot(head.payload, slots))
        with m.If(self.dram_requests.granted):
            m.d.comb += drained.eq(one_hot(self.dram_requests.slot, slots))
        with m.If(self.response.popped):
            m.d.comb += freed.eq(one_hot(self.response.slot, slots))

        def where(condition, mask):
            return Mux(condition, mask, 0)

        m.d.comb += woken.eq(
            self._due
            | self._activated
            | self._taken_from
            | self._answered
            | self._arrived
            | self._turn
            | where(next_.evicted, pass_)
        )
        m.d.uncore += [
            self._free.eq((self._free & ~restarted) | freed | self._acknowledged | where(act.free, sent)),
            self._ready.eq((self._ready & ~self._chosen) | woken),
            self._draining.eq((self._draining & ~drained) | where(self.decide.actions.dram_write, pass_)),
            self._filling.eq(
                (self._filling & ~where(self._s3_fill, one_hot(self._s3_place.slot, slots)))
                | where(next_.evicted & self.decide.actions.fill, pass_)
            ),
            self._probed.eq((self._probed & ~restarted) | where(next_.probed, pass_)),
            self._evicting.eq((self._evicting & ~where(next_.evicted, pass_)) | where(next_.evicting, pass_)),
            self._replacing.eq((self._replacing & ~where(next_.evicted, pass_)) | where(next_.replacing, pass_)),
            self._have_line.eq((self._have_line & ~restarted) | (self._returned & ~self._evicting) | self._arrived),
            self._dirty.eq((self._dirty & ~restarted & ~where(next_.evicted, pass_)) | self._returned),
            self._kept.eq((self._kept & ~restarted) | self._staying),
            self._fetched.eq((self._fetched & ~restarted) | self._arrived),
            self._taken.eq((self._taken & ~restarted) | self._taken_from),
            self._prepared.eq((self._prepared & ~self._turn) | where(next_.prepared, pass_)),
            self._released.eq(
                (self._released | self._releasing[self.layouts.slots :])
                & ~(self._activated | self._taken_from)[self.layouts.slots :]
            ),
        ]
        for i, awaiting in enumerate(self._awaiting):
            answered = where(self._c_client == i, self._acking)
            m.d.uncore += awaiting.eq((awaiting & ~answered) | where(self.decide.actions.probe[i], pass_))

    def _count(self, m):
        """Probes and counters."""
        events, line, request = self.decide.events, self._s1_line, self._s1_request
        actions, cache = self.decide.actions, self.decide.cache
        dram = self.dram[0].request
        handed = dram.valid & dram.ready
        read = handed & (dram.payload.op == MemoryOp.READ)
        write = handed & (dram.payload.op == MemoryOp.WRITE)
        self.device_write.emit(m, actions.commit, line=line, packet=request.packet, hit=cache.hit, way=actions.way)
        self.device_read.emit(m, actions.respond, line=line, packet=request.packet, hit=~self.decide.progress.fetched)
        self.dram_read.emit(m, read, line=dram.payload.line)
        self.dram_write.emit(m, write, line=dram.payload.line)
        replaced = self.decide.progress.evicting  # by itself, else by the request
        victim = Cat(line[: self.layouts.set_width], cache.victim.tag)
        self.evict.emit(m, events.evict, line=Mux(replaced, line, victim), way=actions.way)
        self.core_hits.increment(m, events.core_hit)
        self.core_misses.increment(m, events.core_miss)
        self.device_write_update.increment(m, events.write_update)
        self.device_write_allocate.increment(m, events.write_allocate)
        self.device_write_dram.increment(m, events.write_dram)
        self.device_read_hit.increment(m, events.read_hit)
        self.device_read_miss.increment(m, events.read_miss)
        self.probes_sent.increment(m, actions.probe.any(), sum(actions.probe))
        self.back_invalidations.increment(m, events.back_invalidate)
        self.dram_reads.increment(m, read)
        self.dram_writes.increment(m, write)
        self.evict_dirty.increment(m, events.evict_dirty)
        by_device = request.kind == SlotKind.DEVICE_WRITE
        by_release = request.kind == SlotKind.RELEASE
        self.itom_hit.increment(m, events.write_update & request.full)
        self.itom_miss.increment(m, events.write_allocate & request.full)
        self.rfo_hit.increment(m, events.write_update & ~request.full)
        self.rfo_miss.increment(m, events.write_allocate & ~request.full)
        self.evict_by_core.increment(m, events.evict & ~by_device & ~by_release)
        self.evict_by_release.increment(m, events.evict & by_release)
        self.evict_by_device.increment(m, events.evict & by_device)
        self.io_lines_evicted_unread.increment(m, events.evict_unread)
        self._count_lines(m)

    def _count_lines(self, m):
        """How many lines of each owner there are, one cycle after a pass changed it."""
        change = self._s2_occupancy
        with m.If(self._s2_valid & (change.enter | change.leave)):
            new_io, old_io = change.new == 0, change.old == 0
            for way in range(self.layouts.ways):
                here = change.way == way
                for gauge, new, old in (
                    (self.occupancy_io[way], new_io, old_io),
                    (self.occupancy_core[way], ~new_io, ~old_io),
                ):
                    gauge.change(m, here & change.enter & new, here & change.leave & old)
            for number, gauge in enumerate(self.occupancy_class):
                gauge.change(m, change.enter & (change.new == number + 1), change.leave & (change.old == number + 1))

    def _tell_quiet(self, m):
        """Nothing in the pipeline, nothing to choose, accept or send. The queue of lookups has its timer."""
        busy = [
            self._acceptable,
            self.dram[0].response.valid,
            *(client.c.valid for client in self.client),
            *(client.e.valid for client in self.client),
            (self._ready & ~self._draining).any(),
            self._turn.any(),
            self._s1_valid,
            self._s2_valid,
            self._s3_fill,
            self._s4_fill,
            self.line_buffers.moving,
            *(queue.output.valid for queue in self.channel_b),
            *(~output.idle for output in (*self.channel_d, self.response, self.dram_requests)),
        ]
        m.d.comb += self.quiet.eq(~Cat(busy).any())


def _is_ack(message):
    """Whether a message on channel C answers a Probe."""
    return (message.opcode == OpcodeC.PROBE_ACK) | (message.opcode == OpcodeC.PROBE_ACK_DATA)
