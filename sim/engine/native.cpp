// The native engine: the schedule, the cores' operation queues and the event log around one Verilator model.
//
// The behaviour is that of sim/engine/loop.py, which is the one to read first: both give the same log, byte for byte.
// "ports.h" is generated from the manifest by sim/build/native.py: struct Ports holds the Verilated model and reaches
// its ports, constants describe the machine.

#include <nanobind/nanobind.h>
#include <structmember.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <deque>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "ports.h"
#include "shadow.h"

namespace nb = nanobind;

namespace {

using ports::CORES;
using ports::CORE_DOMAIN;
using ports::CORE_PARTS;
using ports::DOMAINS;
using ports::PERIOD;
using ports::WIRE_DOMAIN;
using Tick = int64_t;
using Clock = std::chrono::steady_clock;

constexpr Tick NEVER = std::numeric_limits<Tick>::max();
constexpr unsigned IDS = 256;
static_assert(DOMAINS < 64, "a set of domains is 64 bits");
constexpr uint64_t ALL_DOMAINS = (uint64_t{1} << DOMAINS) - 1;

enum WakeKind { EMPTY, COMPLETION, INTERRUPT, IDLE, LIMIT };  // sw.port.WakeKind
enum Jump { OFF, ALL, RANDOM };                               // sim.engine.engine.Jump
// hw.bus.core.OperationKind
enum Kind {
    EXECUTE,
    LOAD,
    STORE,
    PREFETCH,
    MMIO_READ,
    MMIO_WRITE,
    FENCE,
    HALT,
    CLI,
    STI,
    IRET,
    ATOMIC,
    POLL,
    LFENCE,
    SFENCE,
    STORE_NT,
    CLFLUSH,
    WRITE_CR3,
    INVLPG,
    RDTSC,
    TSC_DEADLINE,
    KINDS
};
constexpr const char* KIND_NAMES[KINDS] = {"EXECUTE", "LOAD",   "STORE",  "PREFETCH", "MMIO_READ", "MMIO_WRITE", "FENCE",
                                           "HALT",    "CLI",    "STI",    "IRET",     "ATOMIC",    "POLL",       "LFENCE",
                                           "SFENCE",  "STORE_NT", "CLFLUSH", "WRITE_CR3", "INVLPG", "RDTSC", "TSC_DEADLINE"};

// A set of kinds; those of sim/engine/loop.py.
template <class... K>
constexpr uint32_t kinds(K... which) {
    return (... | (1u << which));
}
constexpr bool in(uint32_t set, unsigned kind) { return set >> kind & 1; }
constexpr uint32_t COMPLETING = kinds(LOAD, MMIO_READ, FENCE, ATOMIC, POLL, LFENCE, SFENCE, RDTSC);
constexpr uint32_t SIZED = kinds(LOAD, STORE, PREFETCH, MMIO_READ, MMIO_WRITE, ATOMIC, POLL, STORE_NT, CLFLUSH);
constexpr uint32_t ADDRESSED = SIZED | kinds(EXECUTE, WRITE_CR3, INVLPG, TSC_DEADLINE);
constexpr uint32_t WRITING = kinds(STORE, MMIO_WRITE, POLL, STORE_NT);
constexpr uint32_t MMIO = kinds(MMIO_READ, MMIO_WRITE);
constexpr uint32_t TIMED = kinds(EXECUTE, POLL);
constexpr uint32_t ARGUED = kinds(EXECUTE, HALT, ATOMIC, POLL);
constexpr unsigned ATOMIC_BYTES = 16;
constexpr unsigned TSC_BYTES = 8;

// Bytes of data an operation brings.
constexpr size_t data_bytes(unsigned kind, unsigned size) {
    return kind == ATOMIC ? ATOMIC_BYTES : in(WRITING, kind) ? size : 0;
}

// When software hears of an operation: sw.port.Notify. With GROUP, only of the last of its group.
namespace Notify {
enum : uint8_t { NO, COMPLETE, ISSUE, GROUP = 4 };
}

// An operation as software pushed it, and as it is recorded. The layout is that of sim.engine.engine.OPERATION_DTYPE.
struct Operation {
    Tick not_before = -1;  // handed over at an edge later than this
    int64_t handle = -1;
    int64_t after = -1;
    uint64_t address = 0;
    uint32_t cycles = 0;
    int32_t context = -1;
    uint16_t uops = 0;
    uint16_t argument = 0;
    uint8_t kind = 0;
    uint8_t size = 0;
    uint8_t notify = 0;       // recorded: without GROUP
    uint8_t core = 0;         // recorded: where it was handed over
    uint8_t after_valid = 0;  // recorded: as it was handed over
    uint8_t after_id = 0;
    uint8_t data[LINE_BYTES] = {};
    uint8_t padding[6] = {};
};
static_assert(sizeof(Operation) == 56 + LINE_BYTES);

// One row of the event log. The layout is that of sim.observe.log.LOG_DTYPE.
struct Event {
    uint64_t tick;
    uint64_t probe;
    uint64_t fields[4];
};
static_assert(sizeof(Event) == 48);

struct Frame {
    Tick not_before;
    std::string data;
    uint32_t packet;
    uint64_t start;
};

// A frame that has left the card.
struct Sent {
    Tick tick;
    std::string data;
    uint32_t packet;
};

struct Wake {
    WakeKind kind;
    int core;
    int context;
    int64_t value;
    nb::object data = {};  // what was read
};

// Loads of one context whose values are told together, when the last of them has its own, under its handle.
struct Group {
    enum Shape { LIST, BYTES, NUMBER };  // of what is told: values in order; all bytes in order; those as a number
    Shape shape;
    int64_t first;  // handle
    unsigned left = 0;  // loads that have not told their values
    nb::list values;
    std::vector<std::pair<unsigned, unsigned>> places;  // in bytes: start and length of each load
    std::vector<uint8_t> bytes;
};

// Operations in order. It runs empty often, and then begins again in the same memory: a deque would not.
class Queue {
public:
    bool empty() const { return first_ == items_.size(); }
    size_t size() const { return items_.size() - first_; }
    const Operation& front() const { return items_[first_]; }
    void push_back(const Operation& op) { items_.push_back(op); }
    void push_front(const Operation& op) {
        if (first_)
            items_[--first_] = op;
        else
            items_.insert(items_.begin(), op);
    }
    void pop_front() {
        if (++first_ < items_.size()) return;
        items_.clear();
        first_ = 0;
    }

private:
    std::vector<Operation> items_;
    size_t first_ = 0;
};

struct Context {
    Queue queue;
    std::vector<Group> groups;
    unsigned waiting = 0;  // operations that are to notify and have not
    int core = -1;
    bool due = false;  // tell by EMPTY when it has nothing left
    bool alive = true;
};

// What was handed over under an operation number.
struct Flight {
    int64_t handle = -1;
    uint64_t address = 0;
    uint64_t order = 0;   // how many operations of its core issued before it
    Tick issued_at = -1;
    int32_t context = -1;
    uint32_t cycles = 0;
    uint16_t uops = 0;
    uint16_t argument = 0;
    uint8_t kind = 0;
    uint8_t size = 0;
    uint8_t notify = Notify::NO;
    bool open = false;     // will complete, and has not
    bool sampled = false;  // the cache has read it: `held` is what memory held; POLL: the first that is not its data
    uint8_t value[LINE_BYTES] = {};  // LOAD: its value, from its issue on; else the data it brought
    uint8_t held[LINE_BYTES] = {};
};

struct Core {
    int context = -1;
    int entered = -1;      // the context switched to last, also when an interrupt has taken the core from it
    Tick since = -1;       // what it is offered may be handed over later than this
    uint8_t next_id = 0;   // number of the operation to be handed over next
    bool changed = true;   // look again at what to offer
    bool held = false;     // the front operation waits for a completion before it can be offered
    bool offered = false;  // the front operation may be handed over
    bool stale = true;     // the port does not show it
    bool valid = false;    // the port's valid
    bool after_valid = false;
    uint8_t after_id = 0;
    bool last_issued = true;  // the operation handed over last
    Operation last;
    int working = -1;    // number of the EXECUTE or POLL issued last
    int halted = -1;     // number of a HALT it sits in
    std::array<Flight, IDS> flight;
    std::vector<int64_t> issued;
    std::vector<uint32_t> issued_cycles;  // of each, what an EXECUTE asked for
    std::vector<Operation> script;  // replay: what to hand over
    size_t next = 0;
};

// xorshift64*. The choice of jumps needs no more; no result depends on it.
class Random {
public:
    explicit Random(uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15u + 0x2545F4914F6CDD1Du) {
        if (state_ == 0) state_ = 1;
    }
    uint64_t operator()() {
        state_ ^= state_ >> 12;
        state_ ^= state_ << 25;
        state_ ^= state_ >> 27;
        return state_ * 0x2545F4914F6CDD1Du;
    }

private:
    uint64_t state_;
};

[[noreturn]] void raise(const nb::object& type, const std::string& message) {
    PyErr_SetString(type.ptr(), message.c_str());
    throw nb::python_error();
}

std::string hex(const uint8_t* bytes, size_t size) {
    std::string result;
    for (size_t n = 0; n < size; ++n)
        for (const int digit : {bytes[n] >> 4, bytes[n] & 15}) result += "0123456789abcdef"[digit];
    return result;
}

[[noreturn]] void refuse(const std::string& message) { throw nb::value_error(message.c_str()); }

// ---- Bits of wide ports

inline void put(uint32_t* words, unsigned offset, unsigned width, uint64_t value) {
    if (width < 64) value &= (uint64_t{1} << width) - 1;
    unsigned word = offset / 32, shift = offset % 32;
    words[word] |= static_cast<uint32_t>(value << shift);
    for (unsigned done = 32 - shift; done < width; done += 32) words[++word] |= static_cast<uint32_t>(value >> done);
}

inline void put_bytes(uint32_t* words, unsigned offset, const uint8_t* bytes, size_t size) {
    for (size_t at = 0; at < size; at += 8) {
        uint64_t chunk = 0;
        std::memcpy(&chunk, bytes + at, std::min<size_t>(8, size - at));
        put(words, offset + 8 * static_cast<unsigned>(at), 8 * static_cast<unsigned>(std::min<size_t>(8, size - at)),
            chunk);
    }
}

inline uint64_t get(const uint32_t* words, unsigned offset, unsigned width) {
    unsigned word = offset / 32;
    const unsigned shift = offset % 32;
    uint64_t value = words[word] >> shift;
    for (unsigned done = 32 - shift; done < width; done += 32) value |= uint64_t{words[++word]} << done;
    return width < 64 ? value & ((uint64_t{1} << width) - 1) : value;
}

// ---- The model and its clocks

class Model : public ports::Ports {
public:
    explicit Model(const std::string& waves) {
        if (!waves.empty()) open_waves(waves);
        eval();
    }

    // The host has changed an input that is no clock.
    void touch() { touched_ = true; }

    // Execute an edge of the domains in `due` at tick `at`.
    void edge(Tick at, uint64_t due) {
        settle(at, due);
        set_clocks(due);
        set_time_clocks(due & ports::TIMED);
        evaluate();
        dump(at);
        lower(due);
    }

    // Let `now` of the domains in `late` catch up; `advance` is set.
    void catch_up(Tick at, uint64_t late) {
        settle(at, late);
        set_time_clocks(late);
        eval_clocks();
        dump_caught_up(at);
        lower(late);
    }

private:
    // A clock that was high is seen low before it rises again; if it need not rise now, its fall is folded into
    // the evaluation of the others' rise.
    void settle(Tick at, uint64_t rising) {
        fall_waves(at);
        if (!(rising & unseen_)) return;
        eval_clocks();
        unseen_ = 0;
    }
    void lower(uint64_t which) {
        unseen_ = which;
#if !NICSCOPE_WAVES
        set_clocks(0);
        set_time_clocks(0);
        if (see_clocks_low()) unseen_ = 0;
#endif
    }

    void evaluate() {
        if (touched_)
            eval();
        else
            eval_clocks();
        touched_ = false;
    }

    bool touched_ = false;
    uint64_t unseen_ = 0;  // clocks whose fall has not been evaluated

#if NICSCOPE_WAVES
public:
    ~Model() { close_waves(); }
    void close_waves() {
        if (!open_) return;
        fall_waves(high_since_ + SHORTEST);
        file_.close();
        open_ = false;
    }

private:
    // Waves have clocks one can see: high until half the shortest period has passed, or half the time to the next
    // edge of any clock.
    static constexpr Tick SHORTEST = *std::min_element(std::begin(PERIOD), std::end(PERIOD));
    void open_waves(const std::string& path) {
        context.traceEverOn(true);
        top.trace(&file_, 99);
        file_.open(path.c_str());
        if (!file_.isOpen()) refuse("cannot write waves to " + path);
        open_ = true;
    }
    void dump(Tick at) {
        show(picoseconds(at));
        high_since_ = at;
        shown_ = true;
    }
    // What an edge finds after a jump was there since the last skipped edge.
    void dump_caught_up(Tick at) { show(picoseconds(std::max<Tick>(at - SHORTEST, 0))); }
    void fall_waves(Tick next) {
        if (!unseen_) return;
        set_clocks(0);
        set_time_clocks(0);
        eval();
        unseen_ = 0;
        const uint64_t high = picoseconds(high_since_);
        if (shown_) show(high + (picoseconds(std::min(next, high_since_ + SHORTEST)) - high) / 2);
        shown_ = false;
    }
    // The file wants every time to be later than the one before, which ticks below a picosecond may not be.
    void show(uint64_t time) {
        time_ = std::max(time, time_ + 1);
        if (open_) file_.dump(time_);
    }
    static uint64_t picoseconds(Tick at) {
        return static_cast<uint64_t>(static_cast<unsigned __int128>(at) * 1000000000000u / ports::TICKS_PER_SECOND);
    }
    VerilatedFstC file_;
    uint64_t time_ = ~uint64_t{0};  // of the last dump: none
    bool open_ = false;
    bool shown_ = false;  // the waves show the clocks high
    Tick high_since_ = 0;
#else
public:
    void close_waves() {}

private:
    void open_waves(const std::string&) { refuse("this build has no waves"); }
    void dump(Tick) {}
    void dump_caught_up(Tick) {}
    void fall_waves(Tick) {}
#endif
};

// ---- The loop

class Loop {
public:
    Loop(nb::object wake, nb::list kinds, nb::object engine_error, nb::object coherence_error,
         nb::object page_fault_error, int jump, uint64_t seed, bool record, bool profile, const std::string& waves)
        : model_(waves), wake_(std::move(wake)), kinds_(std::move(kinds)), engine_error_(std::move(engine_error)),
          coherence_error_(std::move(coherence_error)), page_fault_error_(std::move(page_fault_error)),
          jump_(static_cast<Jump>(jump)), random_(seed), record_(record), profile_(profile) {}

    // ---- Contexts, operations, frames

    int new_context() {
        contexts_.push_back(std::make_unique<Context>());
        return static_cast<int>(contexts_.size()) - 1;
    }

    void free_context(int number) {
        Context& context = find(number);
        if (!context.queue.empty())
            refuse("context " + std::to_string(number) + " still has " + std::to_string(context.queue.size()) +
                   " operations to hand over");
        if (context.core >= 0) leave(cores_[context.core]);
        context.alive = false;
    }

    void switch_to(int number, int context_number) {
        if (number < 0 || number >= static_cast<int>(CORES))
            refuse("core must be between 0 and " + std::to_string(CORES - 1) + ", not " + std::to_string(number));
        Context& context = find(context_number);
        if (context.core >= 0 && context.core != number)
            refuse("context " + std::to_string(context_number) + " is on core " + std::to_string(context.core));
        Core& core = cores_[number];
        leave(core);
        context.core = number;
        context.due = true;
        core.context = core.entered = context_number;
        core.since = tick_;
    }

    int64_t push(int number, int kind, uint64_t address, int size, nb::handle data, uint64_t cycles, uint64_t uops,
                 int64_t after, int notify, int argument) {
        Operation op;
        fill(op, kind, address, static_cast<uint64_t>(std::max(size, 0)), cycles, uops, argument);
        fill_data(op, data);
        if (notify < Notify::NO || notify > Notify::ISSUE)
            refuse("notify must be between 0 and 2, not " + std::to_string(notify));
        return queue(number, op, static_cast<uint8_t>(notify), after);
    }

    // The same without Python: `op` is filled.
    int64_t queue(int number, Operation& op, uint8_t notify, int64_t after = -1) {
        if (after < -1 || after >= next_handle())
            refuse("after must be the handle of an operation, not " + std::to_string(after));
        if (notify != Notify::NO && !in(COMPLETING, op.kind) && op.kind != HALT)
            refuse("an operation of kind " + std::to_string(op.kind) + " never completes: it cannot notify");
        if (notify & Notify::ISSUE && op.kind != LOAD)
            refuse("an operation of kind " + std::to_string(op.kind) + " has no value when it issues");
        Context& context = find(number);
        op.notify = notify;
        op.after = after;
        op.context = number;
        op.handle = next_handle();
        op.not_before = tick_;
        complete_.push_back(!in(COMPLETING, op.kind));
        context.queue.push_back(op);
        context.waiting += notify != Notify::NO;
        context.due = true;
        if (notify & Notify::GROUP) join(context.groups.back(), op);
        if (context.core >= 0 && context.queue.size() == 1) change(cores_[context.core]);
        return op.handle;
    }

    // Loads that are queued with Notify::GROUP from now on belong together, as many as `size` says (for a LIST), or
    // bytes.
    void open_group(int number, Group::Shape shape, size_t size) {
        Group group{shape, static_cast<int64_t>(complete_.size())};
        if (shape == Group::LIST)
            group.values = nb::steal<nb::list>(PyList_New(static_cast<Py_ssize_t>(size)));
        else
            group.bytes.resize(std::max<size_t>(size, shape == Group::NUMBER ? 8 : 0));
        find(number).groups.push_back(std::move(group));
    }

    // Everything of an operation but its data.
    static void fill(Operation& op, int kind, uint64_t address, uint64_t size, uint64_t cycles, uint64_t uops,
                     int64_t argument) {
        if (kind < EXECUTE || kind >= KINDS) refuse("there is no operation of kind " + std::to_string(kind));
        const bool sized = in(SIZED, kind), addressed = in(ADDRESSED, kind), timed = in(TIMED, kind);
        const unsigned width = ports::OPERATION_ADDRESS_WIDTH;
        if (addressed && address >> width)
            refuse("an address has " + std::to_string(width) + " bits, not " + std::to_string(address));
        if (sized && (size < 1 || size > LINE_BYTES))
            refuse("size must be between 1 and 64 bytes, not " + std::to_string(size));
        if (sized && address % LINE_BYTES + size > LINE_BYTES)
            refuse(std::to_string(size) + " bytes at address " + std::to_string(address) +
                   " cross a line of 64 bytes");
        if (in(MMIO, kind) && size != 4 && size != 8)
            refuse("an MMIO access has 4 or 8 bytes, not " + std::to_string(size));
        if (kind == ATOMIC && ((size != 1 && size != 2 && size != 4 && size != 8) || address % size))
            refuse("an ATOMIC has 1, 2, 4 or 8 bytes, aligned, not " + std::to_string(size) + " at address " +
                   std::to_string(address));
        if (kind == ATOMIC && (argument < EXCHANGE || argument > COMPARE_EXCHANGE))
            refuse("there is no atomic function " + std::to_string(argument));
        if (kind == POLL && size > 8) refuse("a POLL looks at up to 8 bytes, not " + std::to_string(size));
        if (timed && (cycles < 1 || cycles > 0xFFFFFFFFu))
            refuse("cycles must be between 1 and 4294967295, not " + std::to_string(cycles));
        if (uops > 0xFFFF) refuse("uops must be between 0 and 65535, not " + std::to_string(uops));
        if (argument < 0 || argument > 0xFFFF)
            refuse("argument must be between 0 and 65535, not " + std::to_string(argument));
        if (kind == POLL && !argument) refuse("a POLL looks again after at least 1 cycle, not 0");
        op.kind = static_cast<uint8_t>(kind);
        op.address = addressed ? address : 0;
        op.size = static_cast<uint8_t>(sized ? size : kind == RDTSC ? TSC_BYTES : 0);
        op.cycles = static_cast<uint32_t>(timed ? cycles : 0);
        op.uops = static_cast<uint16_t>(uops);
        op.argument = static_cast<uint16_t>(in(ARGUED, kind) ? argument : 0);
    }

    // An int to be written as `size` bytes.
    static uint64_t number_of(PyObject* data, uint64_t size) {
        if (!PyLong_Check(data)) refuse("data must be an int or bytes");
        if (size > 8) refuse("data of more than 8 bytes must be bytes");
        const uint64_t value = PyLong_AsUnsignedLongLong(data);
        if (value == ~uint64_t{0} && PyErr_Occurred()) throw nb::python_error();
        if (size < 8 && value >> (8 * size)) refuse("data does not fit " + std::to_string(size) + " bytes");
        return value;
    }

    static void check_length(size_t length, uint64_t size) {
        if (length != size)
            refuse("data has " + std::to_string(length) + " bytes, size says " + std::to_string(size));
    }

    void push_frame(nb::bytes data, int64_t packet, int64_t start) {
        if (data.size() < 1 || data.size() > 0xFFFF)
            refuse("a frame must have 1 to 65535 bytes, not " + std::to_string(data.size()));
        constexpr int64_t PACKETS = int64_t{1} << ports::FRAME_BEAT_PACKET_WIDTH;
        if (packet < 1 || packet >= PACKETS)
            refuse("packet must be between 1 and " + std::to_string(PACKETS - 1) + ", not " + std::to_string(packet));
        const int64_t present = tick() / PERIOD[WIRE_DOMAIN];
        if (start < present || start >> ports::FRAME_BEAT_START_WIDTH)
            refuse("start must be between the card's present cycle, " + std::to_string(present) + ", and 2^" +
                   std::to_string(ports::FRAME_BEAT_START_WIDTH) + " - 1, not " + std::to_string(start));
        frames_.push_back({tick_, std::string(data.c_str(), data.size()), static_cast<uint32_t>(packet),
                           static_cast<uint64_t>(start)});
        if (record_) recorded_frames_.push_back(frames_.back());
    }

    // ---- The world outside

    void on_transmit(nb::object callback) {
        check_listener("on_transmit");
        if (!callback.is_none() && !PyCallable_Check(callback.ptr()))
            throw nb::type_error("what on_transmit is given must be callable");
        on_transmit_ = callback.is_none() ? nb::object() : std::move(callback);
    }

    void keep_transmitted() {
        check_listener("keep_transmitted");
        keep_transmitted_ = true;
    }

    nb::list transmitted(size_t since) const {
        if (!keep_transmitted_) refuse("keep_transmitted was not called before the engine ran");
        nb::list result;
        for (size_t place = since; place < transmitted_.size(); ++place) {
            const Sent& sent = transmitted_[place];
            result.append(nb::make_tuple(sent.tick, sent.packet, bytes_of(sent.data)));
        }
        return result;
    }

    int64_t call_at(Tick at, nb::object function) {
        if (!PyCallable_Check(function.ptr())) throw nb::type_error("what call_at is given must be callable");
        const Tick reached = std::max(tick_, called_at_);
        if (at <= reached)
            refuse("a call must be later than tick " + std::to_string(reached) + ", not at " + std::to_string(at));
        calls_.emplace(std::pair{at, ++calls_made_}, std::move(function));
        return calls_made_;
    }

    bool cancel_call(int64_t number) {
        const auto found = std::find_if(calls_.begin(), calls_.end(),
                                        [number](const auto& call) { return call.first.second == number; });
        if (found == calls_.end()) return false;
        // Its function goes when the map is whole again: what it frees may call.
        const nb::object function = std::move(found->second);
        calls_.erase(found);
        return true;
    }

    // What the garbage collector has to know: callbacks that refer to the engine.
    int traverse(visitproc visit, void* arg) const {
        Py_VISIT(on_transmit_.ptr());
        for (const auto& call : calls_) Py_VISIT(call.second.ptr());
        return 0;
    }

    // Let go of callbacks.
    void forget_outside() {
        const nb::object callback = std::move(on_transmit_);
        const auto calls = std::move(calls_);
        calls_.clear();
    }

    // ---- Running

    nb::list run(std::optional<Tick> until) {
        advance(until.value_or(NEVER));
        return take_wakes(0);
    }

    // Run as often as all that happens is that coroutines get what they wait for: the inner loop of
    // sw.core.Dispatcher.run, which says what the arguments are. Returns wakes that Python has to see to, or none when
    // `stop` tells to. With `notes`, `stop` is asked only when one has been added to them.
    nb::list run_coroutines(std::optional<Tick> until, nb::dict contexts, nb::object settle, nb::object stop,
                            std::optional<nb::list> notes) {
        std::vector<Software> known;
        size_t noted = notes ? notes->size() : 0;
        const auto told_to = [&] {
            if (stop.is_none() || (notes && notes->size() == noted)) return false;
            if (notes) noted = notes->size();
            const int answer = PyObject_IsTrue(stop().ptr());
            if (answer < 0) throw nb::python_error();
            return answer != 0;
        };
        for (;;) {
            advance(until.value_or(NEVER));
            size_t done = 0;
            while (done < wakes_.size() && resume(wakes_[done], contexts, settle, known)) ++done;
            if (done < wakes_.size() || told_to()) return take_wakes(done);
            wakes_.clear();
        }
    }

    // Hand over what was recorded, up to tick `end`; returns the seconds it took.
    double replay(nb::bytes operations, const std::vector<std::tuple<Tick, nb::bytes, uint32_t, uint64_t>>& frames,
                  Tick end) {
        if (tick_ >= 0 || !complete_.empty() || !frames_.empty()) refuse("a replay needs a fresh engine");
        if (on_transmit_.is_valid() || !calls_.empty()) refuse("a replay calls nobody: what peers sent is recorded");
        if (operations.size() % sizeof(Operation)) refuse("this is no recording of this version");
        for (size_t at = 0; at < operations.size(); at += sizeof(Operation)) {
            Operation op;
            std::memcpy(static_cast<void*>(&op), operations.c_str() + at, sizeof(Operation));
            if (op.core >= CORES)
                refuse("the recording is of a machine with more than " + std::to_string(CORES) + " cores");
            cores_[op.core].script.push_back(op);
        }
        for (const auto& [not_before, data, packet, start] : frames)
            frames_.push_back({not_before, std::string(data.c_str(), data.size()), packet, start});
        replaying_ = true;
        const auto begin = Clock::now();
        advance(end);
        const std::chrono::duration<double> took = Clock::now() - begin;
        wakes_.clear();
        return took.count();
    }

    // ---- Results

    // Handle of the operation to be queued next.
    int64_t next_handle() const { return static_cast<int64_t>(complete_.size()); }

    // The tag of the operation queued last, see issuer.h.
    void tag(uint16_t tag) { tags_.push_back(tag); }

    // Tags since the last call, 16 bits each.
    nb::bytes take_tags() {
        const nb::bytes result = bytes_of(tags_);
        tags_.clear();
        return result;
    }

    Tick tick() const { return std::max<Tick>({tick_, called_at_, 0}); }

    std::vector<int64_t> cycles() const {
        std::vector<int64_t> result;
        for (unsigned d = 0; d < DOMAINS; ++d) result.push_back(first_edge(d));
        return result;
    }

    std::vector<int64_t> executed() const { return {executed_.begin(), executed_.end()}; }

    std::vector<std::pair<int64_t, double>> edge_costs() const {
        std::vector<std::pair<int64_t, double>> result;
        for (unsigned d = 0; d < DOMAINS; ++d)
            result.emplace_back(alone_[d], std::chrono::duration<double>(alone_time_[d]).count());
        return result;
    }

    nb::bytes log(size_t since) const {
        since = std::min(since, log_.size());
        return nb::bytes(reinterpret_cast<const char*>(log_.data() + since), (log_.size() - since) * sizeof(log_[0]));
    }

    std::vector<uint64_t> counters() {
        std::vector<uint64_t> result;
        for (unsigned n = 0; n < ports::COUNTERS; ++n) result.push_back(model_.counter(n));
        return result;
    }

    nb::bytes issued(unsigned core) const {
        if (core >= CORES) refuse("there is no core " + std::to_string(core));
        return bytes_of(cores_[core].issued);
    }

    nb::bytes issued_cycles(unsigned core) const {
        if (core >= CORES) refuse("there is no core " + std::to_string(core));
        return bytes_of(cores_[core].issued_cycles);
    }

    nb::tuple recording() const {
        if (!record_) refuse("the engine was not made with record=True");
        nb::list frames;
        for (const Frame& frame : recorded_frames_)
            frames.append(nb::make_tuple(frame.not_before, nb::bytes(frame.data.data(), frame.data.size()),
                                         frame.packet, frame.start));
        return nb::make_tuple(bytes_of(recorded_), frames, tick_);
    }

    void close() {
        model_.close_waves();
        forget_outside();
    }

private:
    // ---- Time

    // Number of the first edge of domain d that is still to come.
    int64_t first_edge(unsigned d) const { return (tick_ + PERIOD[d]) / PERIOD[d]; }

    // Its tick. `next_tick_` is that of the edge after the last one executed; domains of one clock share a division.
    Tick first_tick(unsigned d) {
        if (next_tick_[d] > tick_) return next_tick_[d];
        const unsigned clock = ports::CLOCK[d];
        if (clock_edge_[clock] <= tick_) clock_edge_[clock] = first_edge(clock) * PERIOD[clock];
        return clock_edge_[clock];
    }

    // Tick of the first edge of domain d to come that is later than `tick`.
    Tick first_tick_after(unsigned d, Tick tick) {
        return tick <= tick_ ? first_tick(d) : (tick / PERIOD[d] + 1) * PERIOD[d];
    }

    // ---- Software's side

    // A frame of which only the end was heard cannot be told.
    void check_listener(const char* what) const {
        if (tick_ >= 0) refuse(std::string(what) + " comes before the first edge, not at tick " + std::to_string(tick_));
    }

    // Something has become of what this core draws from.
    void change(Core& core) { core.changed = unsettled_ = true; }

    Context& find(int number) {
        if (number < 0 || number >= static_cast<int>(contexts_.size()) || !contexts_[number]->alive)
            refuse("there is no context " + std::to_string(number));
        return *contexts_[number];
    }

    void leave(Core& core) {
        if (core.context >= 0) contexts_[core.context]->core = -1;
        core.context = -1;
        change(core);
    }

    static void fill_data(Operation& op, nb::handle data) {
        const size_t size = data_bytes(op.kind, op.size);
        if (!size) return;
        if (op.kind == ATOMIC && !(PyBytes_Check(data.ptr()) && PyBytes_GET_SIZE(data.ptr()) == ATOMIC_BYTES))
            refuse("data of an ATOMIC must be 16 bytes");
        if (PyBytes_Check(data.ptr())) {
            check_length(static_cast<size_t>(PyBytes_GET_SIZE(data.ptr())), size);
            std::memcpy(op.data, PyBytes_AS_STRING(data.ptr()), size);
            return;
        }
        const uint64_t value = number_of(data.ptr(), size);
        std::memcpy(op.data, &value, 8);
    }

    // Number under which `handle` is in flight on `core`, -1 if it is not.
    static int in_flight(const Core& core, int64_t handle) {
        for (unsigned back = 1; back <= IDS; ++back) {
            const auto id = static_cast<uint8_t>(core.next_id - back);
            if (core.flight[id].handle == handle && core.flight[id].open) return id;
        }
        return -1;
    }

    const Operation* front(const Core& core) const {
        if (replaying_) return core.next < core.script.size() ? &core.script[core.next] : nullptr;
        if (core.context < 0 || contexts_[core.context]->queue.empty()) return nullptr;
        return &contexts_[core.context]->queue.front();
    }

    // Decide what each core is offered from its next edge on. Only between steps, so that what happens on one core
    // reaches another no earlier than at a later tick.
    void offer() {
        unsettled_ = false;
        for (Core& core : cores_) {
            if (!core.changed) continue;
            core.changed = false;
            const Operation* op = front(core);
            core.offered = op != nullptr;
            core.stale = true;
            if (!op || replaying_) continue;
            // Its number must be free again. The RTL orders it after an operation of the same core; after one of
            // another core, or one still queued, it is ordered here.
            const bool hold = core.flight[core.next_id].open ||
                              (op->after >= 0 && !complete_[op->after] && in_flight(core, op->after) < 0);
            if (hold) {
                core.offered = false;
                change(core);
            } else if (core.held) {
                core.since = tick_;
            }
            core.held = hold;
        }
    }

    void raise_empty() {
        for (unsigned i = 0; i < CORES; ++i) {
            const int number = cores_[i].context;
            if (number < 0) continue;
            Context& context = *contexts_[number];
            if (!context.due || !context.queue.empty() || context.waiting) continue;
            // A COMPLETION in this batch will make it go on; if not, EMPTY comes with the next.
            const bool told = std::any_of(wakes_.begin(), wakes_.end(), [number](const Wake& wake) {
                return wake.kind == COMPLETION && wake.context == number;
            });
            if (told) {
                unsettled_ = true;
                continue;
            }
            context.due = false;
            wakes_.push_back({EMPTY, static_cast<int>(i), number, 0});
        }
    }

    void settle() {
        if (!unsettled_) return;
        offer();
        if (!replaying_) raise_empty();
    }

    // ---- Steps

    void advance(Tick until) {
        if (calling_) raise(engine_error_, "what an engine calls may not run it");
        if (failed_) raise(engine_error_, "the engine is closed: what it called has failed");
        unsigned steps = 0;
        settle();
        while (wakes_.empty()) {
            uint64_t due = 0;
            const Tick at = choose(until, due);
            if (at == NEVER) return;
            if (due)
                step(at, due);
            else
                make_calls(at);
            settle();
            if ((++steps & 0xFFFF) == 0 && PyErr_CheckSignals() != 0) throw nb::python_error();
        }
    }

    // The next tick at which an edge is executed, and the domains that execute one; no domain when there is a call to
    // make before. NEVER, and a wake, when idle or past `until`.
    Tick choose(Tick until, uint64_t& due) {
        const uint64_t quiet = model_.quiet();
        Tick at = NEVER;
        const auto consider = [&at, &due](unsigned d, Tick tick) {
            if (tick > at) return;
            due = (tick < at ? 0 : due) | uint64_t{1} << d;
            at = tick;
        };
        bool idle = quiet == ALL_DOMAINS;
        for (uint64_t busy = ~quiet & ALL_DOMAINS; busy; busy &= busy - 1) {
            const auto d = static_cast<unsigned>(__builtin_ctzll(busy));
            consider(d, first_tick(d));
        }
        for (unsigned i = 0; i < CORES; ++i) {
            if (!cores_[i].offered || !model_.operation_ready(i)) continue;
            const unsigned d = CORE_DOMAIN[i];
            consider(d, first_tick_after(d, front(cores_[i])->not_before));
            idle = false;
        }
        if (!frames_.empty() && model_.wire_ready()) {
            consider(WIRE_DOMAIN, first_tick_after(WIRE_DOMAIN, frames_.front().not_before));
            idle = false;
        }
        // Without timers a quiet domain has no reason of its own.
        for (uint64_t rest = quiet & (jump_ == ALL ? ports::WAITING & ~unarmed_ : ALL_DOMAINS); rest; rest &= rest - 1) {
            const auto d = static_cast<unsigned>(__builtin_ctzll(rest));
            consider(d, wake_tick(d, idle));
        }
        const Tick call = calls_.empty() ? NEVER : calls_.begin()->first.first;
        // A replay goes on to its end: a call to be made may have kept the run going.
        if (idle && call == NEVER && !replaying_) {
            wakes_.push_back({IDLE, -1, -1, 0});
            return NEVER;
        }
        if (std::min(at, call) > until) {
            due = 0;
            tick_ = std::max(tick_, until);
            wakes_.push_back({LIMIT, -1, -1, 0});
            return NEVER;
        }
        if (call <= at) due = 0;
        return std::min(at, call);
    }

    // When a quiet domain must execute an edge by itself.
    Tick wake_tick(unsigned d, bool& idle) {
        if (!(deadline_known_ >> d & 1)) {
            // Timers depend on registers of their domain alone.
            uint64_t deadline = ~uint64_t{0};
            foreground_[d] = model_.deadline(d, deadline);
            deadline_[d] = deadline == ~uint64_t{0} ? NEVER : static_cast<Tick>(deadline) * PERIOD[d];
            deadline_known_ |= uint64_t{1} << d;
            if (deadline_[d] == NEVER && !foreground_[d]) unarmed_ |= uint64_t{1} << d;
        }
        if (foreground_[d]) idle = false;
        if (jump_ == OFF) return first_tick(d);
        Tick tick = deadline_[d] == NEVER ? NEVER : std::max(deadline_[d], first_tick(d));
        if (jump_ == RANDOM) tick = std::min(tick, forced_tick(d));
        return tick;
    }

    // When a quiet domain executes an edge although it need not: drawn anew after each edge.
    Tick forced_tick(unsigned d) {
        if (!drawn_[d]) {
            const uint64_t r = random_();
            const Tick soon = first_tick(d) + static_cast<Tick>(r >> 8 & 63) * PERIOD[d];
            forced_[d] = (r & 1) ? NEVER : (r & 2) ? soon : 0;
            drawn_[d] = true;
        }
        return std::max(forced_[d], first_tick(d));
    }

    void step(Tick at, uint64_t due) {
        // A part that catches up may reach a deadline, and thereby give work to its neighbours at this same edge.
        for (uint64_t more = due; more; due |= more) more = begin(at, more) ? awakened(at, due | more) : 0;

        model_.probes(due, [this, at](unsigned first, uint64_t valid) {
            for (; valid; valid &= valid - 1) {
                const unsigned number = first + static_cast<unsigned>(__builtin_ctzll(valid));
                log_.push_back({static_cast<uint64_t>(at), number, {0, 0, 0, 0}});
                model_.payload(number, log_.back().fields);
            }
        });
        for (unsigned i = 0; i < CORES; ++i)
            if (due & CORE_PARTS[i]) core_edge(i, at, due >> CORE_DOMAIN[i] & 1);
        becomes_visible(at, due);
        if (due >> WIRE_DOMAIN & 1) {
            wire_edge(at);
            wire_out_edge(at);
        }

        if (profile_)
            timed_edge(at, due);
        else
            model_.edge(at, due);
        tick_ = at;
        if (frame_left_) tell_frame();
    }

    // The domains in `due` are to execute an edge at tick `at`: let those with a time catch up. Whether any had to.
    bool begin(Tick at, uint64_t due) {
        uint64_t late = 0;
        deadline_known_ &= ~due;
        unarmed_ &= ~due;
        for (; due; due &= due - 1) {
            const auto d = static_cast<unsigned>(__builtin_ctzll(due));
            if (at != next_tick_[d] && ports::TIMED >> d & 1) {
                model_.set_advance(d, static_cast<uint64_t>((at - next_tick_[d]) / PERIOD[d] - 1));
                late |= uint64_t{1} << d;
            }
            next_tick_[d] = at + PERIOD[d];
            drawn_[d] = false;
            ++executed_[d];
        }
        if (!late) return false;
        model_.catch_up(at, late);
        for (; late; late &= late - 1) model_.set_advance(static_cast<unsigned>(__builtin_ctzll(late)), 0);
        return true;
    }

    // Domains not in `due` that have an edge at tick `at` and are not quiet any more.
    uint64_t awakened(Tick at, uint64_t due) {
        uint64_t found = 0;
        for (uint64_t busy = ~model_.quiet() & ALL_DOMAINS & ~due; busy; busy &= busy - 1) {
            const auto d = static_cast<unsigned>(__builtin_ctzll(busy));
            found |= static_cast<uint64_t>(at % PERIOD[d] == 0) << d;
        }
        return found;
    }

    void timed_edge(Tick at, uint64_t due) {
        const auto begin = Clock::now();
        model_.edge(at, due);
        // All parts of a core count as its port.
        for (unsigned i = 0; i < CORES; ++i)
            if (due & CORE_PARTS[i]) due = (due & ~CORE_PARTS[i]) | uint64_t{1} << CORE_DOMAIN[i];
        if (due & (due - 1)) return;
        const auto d = static_cast<unsigned>(__builtin_ctzll(due));
        alone_time_[d] += Clock::now() - begin;
        ++alone_[d];
    }

    // An edge of a part of core i: its cache may read without its port's doing anything.
    void core_edge(unsigned i, Tick at, bool port) {
        Core& core = cores_[i];
        if (port && model_.issue(i)) issue(core, i, model_.issue_id(i), at);
        if (model_.sampled(i)) sample(core.flight[model_.sampled_id(i)], i, at);
        if (!port) return;
        if (model_.completion_valid(i)) completion(core, i, at);
        if (model_.fault(i))
            raise(page_fault_error_, describe(core.flight[model_.fault_id(i)], i, at) +
                                         (model_.fault_outside(i) ? ": no memory there" : ": page not present"));
        const bool interrupted = model_.interrupt_taken(i);
        if (interrupted && !replaying_) interrupt(core, i);
        hand_over(core, i, at, interrupted);
    }

    void issue(Core& core, unsigned i, uint8_t id, Tick at) {
        Flight& flight = core.flight[id];
        flight.order = core.issued.size();
        flight.issued_at = at;
        core.issued.push_back(flight.handle);
        core.issued_cycles.push_back(flight.kind == EXECUTE ? flight.cycles : 0);
        if (id == static_cast<uint8_t>(core.next_id - 1)) core.last_issued = true;
        const uint64_t address = physical(flight.address);
        switch (flight.kind) {
        case LOAD:
            shadow_.bound(i, address, flight.size, flight.value);
            if (flight.notify & Notify::ISSUE) tell(flight, i, flight.value);
            break;
        case STORE:
        case ATOMIC: {
            PendingStore store{flight.order, address, flight.size, flight.kind == ATOMIC,
                               static_cast<uint8_t>(flight.argument)};
            std::memcpy(store.data, flight.value, LINE_BYTES);
            shadow_.issue(i, store);
            break;
        }
        case HALT:
            core.halted = id;
            break;
        case EXECUTE:
        case POLL:
            core.working = id;
            break;
        }
    }

    // The cache reads what an operation asked for: what memory holds now is what it must get.
    void sample(Flight& flight, unsigned i, Tick at) {
        if (!flight.open) return;  // a look of a POLL that an interrupt has ended
        const uint64_t address = physical(flight.address);
        if (shadow_.waits_for_store(i, flight.order, address, flight.size))
            raise(coherence_error_,
                  describe(flight, i, at) + ": read before an earlier store to it was visible");
        std::array<uint8_t, LINE_BYTES> held;
        shadow_.read(address, flight.size, held.data());
        if (flight.kind == POLL && (flight.sampled || !std::memcmp(held.data(), flight.value, flight.size))) return;
        std::memcpy(flight.held, held.data(), flight.size);
        flight.sampled = true;
    }

    void completion(Core& core, unsigned i, Tick at) {
        const uint32_t* bits = model_.completion(i);
        Flight& flight = core.flight[get(bits, ports::COMPLETION_ID, ports::COMPLETION_ID_WIDTH)];
        if (!flight.open) return;
        flight.open = false;
        core.stale = true;
        complete(flight);
        std::array<uint8_t, LINE_BYTES> got = {};
        for (unsigned byte = 0; byte < flight.size; byte += 8) {
            const uint64_t chunk = get(bits, ports::COMPLETION_DATA + 8 * byte, 64);
            std::memcpy(got.data() + byte, &chunk, 8);
        }
        if (!expected(flight, i, got.data(), at))
            raise(coherence_error_, describe(flight, i, at) + ": got " + hex(got.data(), flight.size) + ", expected " +
                                        (flight.sampled         ? hex(flight.held, flight.size)
                                         : flight.kind == LOAD ? hex(flight.value, flight.size)
                                                                : "no answer: it was not read"));
        if (flight.notify & Notify::COMPLETE) tell(flight, i, flight.kind == LOAD ? flight.value : got.data());
    }

    void complete(const Flight& flight) {
        if (!replaying_) complete_[flight.handle] = true;
    }

    // Whether an operation completes with what it must.
    static bool expected(const Flight& flight, unsigned i, const uint8_t* got, Tick at) {
        const auto is = [&](const uint8_t* bytes) { return !std::memcmp(got, bytes, flight.size); };
        switch (flight.kind) {
        case LOAD:
            // One that was not read had its value forwarded from a store.
            return is(flight.sampled ? flight.held : flight.value);
        case ATOMIC:
            return flight.sampled && is(flight.held);
        case POLL: {
            // It gives up by the clock, whatever memory holds then.
            const Tick timeout = flight.issued_at + flight.cycles * PERIOD[CORE_DOMAIN[i]];
            return (is(flight.value) && (!flight.sampled || at >= timeout)) || (flight.sampled && is(flight.held));
        }
        default:
            return true;
        }
    }

    // What becomes visible at a tick does so behind everything that is read at it.
    void becomes_visible(Tick at, uint64_t due) {
        for (unsigned i = 0; i < CORES; ++i)
            if (due & CORE_PARTS[i] && model_.visible(i) && !shadow_.visible(i))
                raise(coherence_error_, "core " + std::to_string(i) + ", tick " + std::to_string(at) +
                                            ": a store that had not issued became visible");
        if (ports::DEVICE_DOMAIN < 0 || !(due >> ports::DEVICE_DOMAIN & 1)) return;
        if (model_.device_write_accepted())
            shadow_.device_accepted(model_.device_write_line(), model_.device_write_mask(),
                                    model_.device_write_data());
        if (model_.device_write_done() && !shadow_.device_done())
            raise(coherence_error_, "tick " + std::to_string(at) +
                                        ": a write by a device that had not been accepted became visible");
    }

    static std::string describe(const Flight& flight, unsigned i, Tick at) {
        char address[24];
        std::snprintf(address, sizeof address, "0x%llx", static_cast<unsigned long long>(flight.address));
        return "core " + std::to_string(i) + ", tick " + std::to_string(at) + ": " + KIND_NAMES[flight.kind] + " of " +
               std::to_string(flight.size) + " bytes at " + address + " (handle " + std::to_string(flight.handle) +
               ")";
    }

    // Software hears of what it has waited for.
    void tell(const Flight& flight, unsigned i, const uint8_t* data) {
        Wake wake{COMPLETION, static_cast<int>(i), flight.context, flight.handle};
        if (!(flight.notify & Notify::GROUP))
            wake.data = value_of(data, flight.size);
        else if (!gather(flight, data, wake))
            return;
        finish(std::move(wake));
    }

    void finish(Wake wake) {
        --contexts_[wake.context]->waiting;
        unsettled_ = true;
        wakes_.push_back(std::move(wake));
    }

    // What was read, as software gets it.
    static nb::object value_of(const uint8_t* data, size_t size) {
        if (size > 8) return nb::steal(PyBytes_FromStringAndSize(reinterpret_cast<const char*>(data), size));
        uint64_t value;
        std::memcpy(&value, data, 8);
        if (size < 8) value &= (uint64_t{1} << (8 * size)) - 1;
        return nb::steal(PyLong_FromUnsignedLongLong(value));
    }

    // ---- Groups

    static void join(Group& group, const Operation& op) {
        ++group.left;
        if (group.shape == Group::LIST) return;
        const unsigned start = group.places.empty() ? 0 : group.places.back().first + group.places.back().second;
        group.places.emplace_back(start, op.size);
    }

    // Take in what one of a group has read; if it was the last, complete what is told.
    bool gather(const Flight& flight, const uint8_t* data, Wake& wake) {
        Context& context = *contexts_[flight.context];
        const auto found = std::find_if(context.groups.rbegin(), context.groups.rend(),
                                        [&](const Group& group) { return group.first <= flight.handle; });
        Group& group = *found;
        const auto place = static_cast<size_t>(flight.handle - group.first);
        if (group.shape == Group::LIST)
            PyList_SET_ITEM(group.values.ptr(), static_cast<Py_ssize_t>(place),
                            value_of(data, flight.size).release().ptr());
        else
            std::memcpy(group.bytes.data() + group.places[place].first, data, flight.size);
        if (--group.left) {
            --context.waiting;
            unsettled_ = true;
            return false;
        }
        wake.data = told(group, wake.value);
        context.groups.erase(std::next(found).base());
        return true;
    }

    static nb::object told(Group& group, int64_t& handle) {
        if (group.shape == Group::LIST) {
            handle = group.first + PyList_GET_SIZE(group.values.ptr()) - 1;
            return std::move(group.values);
        }
        handle = group.first + static_cast<int64_t>(group.places.size()) - 1;
        if (group.shape == Group::NUMBER) return value_of(group.bytes.data(), 8);
        return nb::steal(
            PyBytes_FromStringAndSize(reinterpret_cast<const char*>(group.bytes.data()), group.bytes.size()));
    }

    // ---- Interrupts

    void interrupt(Core& core, unsigned i) {
        const uint64_t taken = model_.interrupt(i);
        const uint64_t remaining = taken >> ports::INTERRUPT_REMAINING & 0xFFFFFFFFu;
        if (core.halted >= 0) {
            const Flight& flight = core.flight[core.halted];
            if (flight.notify) finish({COMPLETION, static_cast<int>(i), flight.context, flight.handle});
            core.halted = -1;
        }
        if ((taken >> ports::INTERRUPT_SQUASHED & 1) && !core.last_issued) {
            core.flight[static_cast<uint8_t>(core.next_id - 1)].open = false;
            contexts_[core.last.context]->queue.push_front(core.last);
            core.last_issued = true;
        }
        if (core.working >= 0) set_aside(core.flight[core.working], static_cast<uint32_t>(remaining));
        core.working = -1;
        const int interrupted = core.context;
        leave(core);
        core.offered = false;
        wakes_.push_back({INTERRUPT, static_cast<int>(i), interrupted,
                          static_cast<int64_t>(taken >> ports::INTERRUPT_VECTOR & 0xFF)});
    }

    // Put what an interrupt left of an EXECUTE or POLL in front of its context's queue.
    void set_aside(Flight& flight, uint32_t remaining) {
        Operation rest;
        rest.kind = flight.kind;
        rest.handle = flight.handle;
        rest.context = flight.context;
        rest.uops = flight.uops;
        if (flight.kind == EXECUTE && remaining) {
            // Without text: it had been fetched by and large, and is in the cache or near it.
            rest.cycles = remaining;
            rest.uops = static_cast<uint16_t>((uint64_t{flight.uops} * remaining + flight.cycles - 1) / flight.cycles);
        } else if (flight.kind == POLL && flight.open) {
            // It may have been cut short while its last look was on its way.
            rest.cycles = std::max(remaining, 1u);
            rest.address = flight.address;
            rest.size = flight.size;
            rest.notify = flight.notify;
            rest.argument = flight.argument;
            std::memcpy(rest.data, flight.value, LINE_BYTES);
        } else {
            return;
        }
        flight.open = false;
        contexts_[rest.context]->queue.push_front(rest);
    }

    void hand_over(Core& core, unsigned i, Tick at, bool interrupted) {
        const Operation* op = core.offered ? front(core) : nullptr;
        if (!op || at <= op->not_before) {
            if (core.valid) {
                model_.set_operation_valid(i, false);
                model_.touch();
            }
            core.valid = false;
            return;
        }
        if (core.stale || !core.valid) show(core, i, *op);
        if (interrupted || !model_.operation_ready(i)) return;

        if (record_) {
            Operation& copy = recorded_.emplace_back(*op);
            copy.not_before = std::max(op->not_before, core.since);
            copy.notify &= ~Notify::GROUP;
            copy.core = static_cast<uint8_t>(i);
            copy.after_valid = core.after_valid;
            copy.after_id = core.after_id;
        }
        Flight& flight = core.flight[core.next_id++];
        flight.handle = op->handle;
        flight.address = op->address;
        flight.context = op->context;
        flight.cycles = op->cycles;
        flight.uops = op->uops;
        flight.argument = op->argument;
        flight.kind = op->kind;
        flight.size = op->size;
        flight.notify = replaying_ ? Notify::NO : op->notify;
        flight.open = in(COMPLETING, op->kind);
        flight.sampled = false;
        std::memcpy(flight.value, op->data, LINE_BYTES);
        core.offered = false;
        change(core);
        core.last_issued = false;
        if (replaying_) {
            ++core.next;
        } else {
            core.last = *op;
            contexts_[core.context]->queue.pop_front();
        }
    }

    // Put an operation on the port. What completes at this very edge counts as complete.
    void show(Core& core, unsigned i, const Operation& op) {
        if (replaying_) {
            core.after_valid = op.after_valid;
            core.after_id = op.after_id;
        } else {
            const int after = op.after < 0 || complete_[op.after] ? -1 : in_flight(core, op.after);
            core.after_valid = after >= 0;
            core.after_id = static_cast<uint8_t>(std::max(after, 0));
        }
        model_.touch();
        uint32_t* words = model_.operation(i);
        std::memset(words, 0, 4 * ports::OPERATION_WORDS);
        put(words, ports::OPERATION_KIND, ports::OPERATION_KIND_WIDTH, op.kind);
        put(words, ports::OPERATION_ID, ports::OPERATION_ID_WIDTH, core.next_id);
        put(words, ports::OPERATION_ADDRESS, ports::OPERATION_ADDRESS_WIDTH, op.address);
        put(words, ports::OPERATION_SIZE, ports::OPERATION_SIZE_WIDTH, op.size);
        put_bytes(words, ports::OPERATION_DATA, op.data, data_bytes(op.kind, op.size));
        put(words, ports::OPERATION_CYCLES, ports::OPERATION_CYCLES_WIDTH, op.cycles);
        put(words, ports::OPERATION_UOPS, ports::OPERATION_UOPS_WIDTH, op.uops);
        put(words, ports::OPERATION_ARGUMENT, ports::OPERATION_ARGUMENT_WIDTH, op.argument);
        put(words, ports::OPERATION_AFTER_VALID, 1, core.after_valid);
        put(words, ports::OPERATION_AFTER, ports::OPERATION_AFTER_WIDTH, core.after_id);
        if (!core.valid) model_.set_operation_valid(i, true);
        core.valid = true;
        core.stale = false;
    }

    void wire_edge(Tick at) {
        if (frames_.empty() || at <= frames_.front().not_before) {
            if (wire_valid_) {
                model_.set_wire_valid(false);
                model_.touch();
            }
            wire_valid_ = false;
            return;
        }
        const Frame& frame = frames_.front();
        const size_t size = std::min<size_t>(LINE_BYTES, frame.data.size() - sent_);
        const bool last = sent_ + size == frame.data.size();
        if (wire_stale_ || !wire_valid_) model_.touch();
        if (wire_stale_) {
            uint32_t* words = model_.wire();
            std::memset(words, 0, 4 * ports::FRAME_BEAT_WORDS);
            put_bytes(words, ports::FRAME_BEAT_DATA, reinterpret_cast<const uint8_t*>(frame.data.data()) + sent_, size);
            put(words, ports::FRAME_BEAT_LENGTH, ports::FRAME_BEAT_LENGTH_WIDTH, frame.data.size());
            put(words, ports::FRAME_BEAT_FIRST, 1, sent_ == 0);
            put(words, ports::FRAME_BEAT_LAST, 1, last);
            put(words, ports::FRAME_BEAT_PACKET, ports::FRAME_BEAT_PACKET_WIDTH, frame.packet);
            put(words, ports::FRAME_BEAT_START, ports::FRAME_BEAT_START_WIDTH, frame.start);
            wire_stale_ = false;
        }
        if (!wire_valid_) model_.set_wire_valid(true);
        wire_valid_ = true;
        if (!model_.wire_ready()) return;
        wire_stale_ = true;
        sent_ += size;
        if (!last) return;
        sent_ = 0;
        frames_.pop_front();
    }

    // Gather what leaves the card.
    void wire_out_edge([[maybe_unused]] Tick at) {
#if NICSCOPE_SENDS
        if (!(keep_transmitted_ || on_transmit_.is_valid()) || !model_.wire_out_valid()) return;
        const uint32_t* words = model_.wire_out();
        const size_t length = get(words, ports::SENT_BEAT_LENGTH, ports::SENT_BEAT_LENGTH_WIDTH);
        const bool first = get(words, ports::SENT_BEAT_FIRST, 1), last = get(words, ports::SENT_BEAT_LAST, 1);
        const size_t begun = leaving_.data.size();
        if (first != (begun == 0) || begun >= length || last != (begun + LINE_BYTES >= length))
            raise(engine_error_, "tick " + std::to_string(at) + ": the card sent a beat with first " +
                                     std::to_string(first) + ", last " + std::to_string(last) + " at byte " +
                                     std::to_string(begun) + " of a frame of " + std::to_string(length));
        std::array<char, LINE_BYTES> bytes;
        for (unsigned byte = 0; byte < LINE_BYTES; byte += 8) {
            const uint64_t chunk = get(words, ports::SENT_BEAT_DATA + 8 * byte, 64);
            std::memcpy(bytes.data() + byte, &chunk, 8);
        }
        leaving_.data.append(bytes.data(), std::min<size_t>(LINE_BYTES, length - begun));
        if (!last) return;
        leaving_.tick = at;
        leaving_.packet = static_cast<uint32_t>(get(words, ports::SENT_BEAT_PACKET, ports::SENT_BEAT_PACKET_WIDTH));
        frame_left_ = true;
#endif
    }

    // ---- Calls

    // A frame has left at the step that has just been made.
    void tell_frame() {
        frame_left_ = false;
        const Sent sent = std::exchange(leaving_, {});
        if (on_transmit_.is_valid()) {
            const nb::object callback = on_transmit_;
            call_outside([&] { callback(sent.tick, sent.packet, bytes_of(sent.data)); });
        }
        if (keep_transmitted_) transmitted_.push_back(sent);
    }

    // What is to be called at a tick is, before its edges.
    void make_calls(Tick at) {
        tick_ = at - 1;
        called_at_ = at;
        while (!calls_.empty() && calls_.begin()->first.first == at) {
            const nb::object function = std::move(calls_.begin()->second);
            calls_.erase(calls_.begin());
            call_outside([&] { function(); });
        }
    }

    template <class Call>
    void call_outside(Call&& call) {
        calling_ = true;
        try {
            call();
        } catch (...) {
            calling_ = false;
            failed_ = true;
            close();
            throw;
        }
        calling_ = false;
    }

    // ---- To Python

    nb::list take_wakes(size_t first) {
        nb::list result;
        for (size_t n = first; n < wakes_.size(); ++n) result.append(make_wake(wakes_[n]));
        wakes_.clear();
        return result;
    }

    // A sw.core.Context, two of its attributes and where it keeps a third. Never kept: it refers to the engine.
    struct Software {
        int number;
        nb::object context, coroutine, results;
        PyObject** waiting;
    };

    static Software software_of(int number, const nb::dict& contexts) {
        nb::object context = contexts[nb::int_(number)];
        nb::object coroutine = context.attr("coroutine"), results = context.attr("results");
        // A slot: read and written in place.
        const nb::object slot = nb::object(context.type().attr("waiting"));
        if (!Py_IS_TYPE(slot.ptr(), &PyMemberDescr_Type)) refuse("a context must have a slot called waiting");
        const Py_ssize_t offset = reinterpret_cast<PyMemberDescrObject*>(slot.ptr())->d_member->offset;
        auto** waiting = reinterpret_cast<PyObject**>(reinterpret_cast<char*>(context.ptr()) + offset);
        return {number, std::move(context), std::move(coroutine), std::move(results), waiting};
    }

    // Give a coroutine what it waits for, and note what it waits for next; false if this is not such a wake.
    bool resume(const Wake& wake, const nb::dict& contexts, const nb::object& settle, std::vector<Software>& known) {
        if (wake.kind != COMPLETION || cores_[wake.core].entered != wake.context) return false;
        auto found = std::find_if(known.begin(), known.end(),
                                  [&](const Software& software) { return software.number == wake.context; });
        if (found == known.end()) {
            known.push_back(software_of(wake.context, contexts));
            found = std::prev(known.end());
        }
        const auto& [number, context, coroutine, results, waiting] = *found;
        if (PyLong_AsLongLong(*waiting) != wake.value) return false;

        nb::object value = wake.data.is_valid() ? wake.data : nb::steal(PyLong_FromLong(0));
        for (;;) {
            PyObject* request = nullptr;
            const PySendResult status = PyIter_Send(coroutine.ptr(), value.ptr(), &request);
            if (status == PYGEN_ERROR) throw nb::python_error();
            const nb::object owned = nb::steal(request);
            if (status == PYGEN_RETURN || !PyLong_CheckExact(request)) {
                settle(context, status == PYGEN_RETURN, owned);
                return true;
            }
            // It may have been there already.
            PyObject* there = PyDict_GET_SIZE(results.ptr()) ? PyDict_GetItemWithError(results.ptr(), request) : nullptr;
            if (!there) {
                Py_SETREF(*waiting, Py_NewRef(request));
                return true;
            }
            value = nb::borrow(there);
            if (PyDict_DelItem(results.ptr(), request) < 0) throw nb::python_error();
        }
    }

    nb::object make_wake(const Wake& wake) const {
        // A NamedTuple is a tuple without further slots: filled in place, a third of the time of calling it.
        auto* type = reinterpret_cast<PyTypeObject*>(wake_.ptr());
        nb::object result = nb::steal(type->tp_alloc(type, 5));
        PyObject* items[5] = {
            nb::object(kinds_[static_cast<size_t>(wake.kind)]).release().ptr(),
            PyLong_FromLong(wake.core),
            PyLong_FromLong(wake.context),
            PyLong_FromLongLong(wake.value),
            wake.data.is_valid() ? nb::object(wake.data).release().ptr() : PyLong_FromLong(0),
        };
        for (int i = 0; i < 5; ++i) PyTuple_SET_ITEM(result.ptr(), i, items[i]);
        return result;
    }

    template <class T>
    static nb::bytes bytes_of(const std::vector<T>& items) {
        return nb::bytes(reinterpret_cast<const char*>(items.data()), items.size() * sizeof(T));
    }
    static nb::bytes bytes_of(const std::string& data) { return nb::bytes(data.data(), data.size()); }

    Model model_;
    nb::object wake_;  // sw.port.Wake
    nb::list kinds_;   // the members of sw.port.WakeKind
    nb::object engine_error_, coherence_error_, page_fault_error_;  // of sim.engine.engine
    Jump jump_;
    Random random_;
    bool record_;
    bool profile_;
    bool replaying_ = false;
    bool unsettled_ = true;  // what cores are offered, or whether they have run empty, may have changed

    Tick tick_ = -1;  // of the last step
    std::array<Tick, DOMAINS> next_tick_ = {};
    std::array<Tick, DOMAINS> clock_edge_ = {};  // by clock: the first edge later than `tick_`, unless that has passed it
    std::array<Tick, DOMAINS> deadline_ = {};
    std::array<Tick, DOMAINS> forced_ = {};
    uint64_t deadline_known_ = 0;  // domains that have not executed an edge since their deadline was asked for
    uint64_t unarmed_ = 0;         // ... and that have none
    std::array<bool, DOMAINS> foreground_ = {};
    std::array<bool, DOMAINS> drawn_ = {};
    std::array<int64_t, DOMAINS> executed_ = {};
    std::array<int64_t, DOMAINS> alone_ = {};
    std::array<Clock::duration, DOMAINS> alone_time_ = {};

    std::vector<std::unique_ptr<Context>> contexts_;
    std::array<Core, CORES> cores_;
    Shadow<CORES> shadow_;
    std::vector<bool> complete_;  // by handle
    std::vector<uint16_t> tags_;
    std::deque<Frame> frames_;
    size_t sent_ = 0;  // bytes of the front frame that have been handed over
    bool wire_valid_ = false;
    bool wire_stale_ = true;

    nb::object on_transmit_;
    bool keep_transmitted_ = false;
    bool frame_left_ = false;
    Sent leaving_ = {};  // the frame of which some beats have left
    std::vector<Sent> transmitted_;
    std::map<std::pair<Tick, int64_t>, nb::object> calls_;  // by tick, then number
    int64_t calls_made_ = 0;
    Tick called_at_ = -1;  // of the last calls: its edges are still to come while tick_ is less
    bool calling_ = false;
    bool failed_ = false;

    std::vector<Wake> wakes_;
    std::vector<Event> log_;
    std::vector<Operation> recorded_;
    std::vector<Frame> recorded_frames_;
};

}  // namespace

#include "issuer.h"

// An engine that calls a peer that holds the engine: the garbage collector finds both.
int traverse_loop(PyObject* self, visitproc visit, void* arg) {
    Py_VISIT(Py_TYPE(self));
    return nb::inst_ready(self) ? nb::inst_ptr<Loop>(self)->traverse(visit, arg) : 0;
}

int clear_loop(PyObject* self) {
    nb::inst_ptr<Loop>(self)->forget_outside();
    return 0;
}

PyType_Slot collected[] = {
    {Py_tp_traverse, reinterpret_cast<void*>(traverse_loop)},
    {Py_tp_clear, reinterpret_cast<void*>(clear_loop)},
    {0, nullptr},
};

NB_MODULE(nicscope_native, m) {
    using namespace nb::literals;
    ready_types();
    nb::class_<Loop>(m, "Loop", nb::type_slots(collected))
        .def(nb::init<nb::object, nb::list, nb::object, nb::object, nb::object, int, uint64_t, bool, bool,
                      const std::string&>(),
             "wake"_a, "kinds"_a, "engine_error"_a, "coherence_error"_a, "page_fault_error"_a, "jump"_a, "seed"_a,
             "record"_a, "profile"_a, "waves"_a)
        .def("new_context", &Loop::new_context)
        .def("free_context", &Loop::free_context, "context"_a)
        .def("switch", &Loop::switch_to, "core"_a, "context"_a)
        .def("push", &Loop::push, "context"_a, "kind"_a, "address"_a = 0, "size"_a = 0, "data"_a = 0, "cycles"_a = 0,
             "uops"_a = 0, "after"_a = -1, "notify"_a = 0, "argument"_a = 0)
        .def("issuer", make_issuer, "costs"_a, "functions"_a)
        .def("take_tags", &Loop::take_tags)
        .def("push_frame", &Loop::push_frame, "data"_a, "packet"_a, "start"_a)
        .def("on_transmit", &Loop::on_transmit, "callback"_a.none())
        .def("keep_transmitted", &Loop::keep_transmitted)
        .def("transmitted", &Loop::transmitted, "since"_a = 0)
        .def("call_at", &Loop::call_at, "tick"_a, "function"_a.none())
        .def("cancel_call", &Loop::cancel_call, "call"_a)
        .def("run", &Loop::run, "until"_a = nb::none())
        .def("run_coroutines", &Loop::run_coroutines, "until"_a.none(), "contexts"_a, "settle"_a, "stop"_a.none(),
             "notes"_a.none())
        .def("replay", &Loop::replay, "operations"_a, "frames"_a, "end"_a)
        .def_prop_ro("tick", &Loop::tick)
        .def("cycles", &Loop::cycles)
        .def("executed", &Loop::executed)
        .def("edge_costs", &Loop::edge_costs)
        .def("log", &Loop::log, "since"_a = 0)
        .def("counters", &Loop::counters)
        .def("issued", &Loop::issued, "core"_a)
        .def("issued_cycles", &Loop::issued_cycles, "core"_a)
        .def("recording", &Loop::recording)
        .def("close", &Loop::close);
}
