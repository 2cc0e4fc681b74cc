// The software's side of a core in C++: what sw/issue.py does, call by call, without Python in between.
//
// Included by native.cpp, behind Loop. These are types of plain CPython: a call costs a third of what it takes through
// nanobind, and an `await` finds its coroutine without a Python frame in between.

#pragma once

namespace {

constexpr unsigned MODE_SHIFT = 12;  // as sw.issue
constexpr uint32_t FUNCTION_MASK = (1u << MODE_SHIFT) - 1;
constexpr uint64_t UOPS_MAX = 0xFFFF;

// ---- From Python

inline uint64_t unsigned_of(PyObject* object) {
    const uint64_t value = PyLong_AsUnsignedLongLong(object);
    if (value == ~uint64_t{0} && PyErr_Occurred()) throw nb::python_error();
    return value;
}

inline long signed_of(PyObject* object) {
    const long value = PyLong_AsLong(object);
    if (value == -1 && PyErr_Occurred()) throw nb::python_error();
    return value;
}

// Two items of a tuple: a place (address, size), a field (offset, size).
inline std::pair<uint64_t, uint64_t> pair_of(PyObject* object) {
    if (!PyTuple_Check(object) || PyTuple_GET_SIZE(object) != 2) {
        PyErr_SetString(PyExc_TypeError, "a tuple of two numbers is needed");
        throw nb::python_error();
    }
    return {unsigned_of(PyTuple_GET_ITEM(object, 0)), unsigned_of(PyTuple_GET_ITEM(object, 1))};
}

// What a function of C++ throws, as CPython wants it.
template <class F>
auto guarded(F&& f, decltype(f()) failed) noexcept -> decltype(f()) {
    try {
        return f();
    } catch (nb::python_error& error) {
        error.restore();
    } catch (const nb::builtin_exception& error) {
        PyErr_SetString(PyExc_ValueError, error.what());
    } catch (const std::exception& error) {
        PyErr_SetString(PyExc_RuntimeError, error.what());
    }
    return failed;
}

// A finished `send` as Python code sees it: StopIteration with the result.
inline PyObject* stop_iteration(PyObject* result) {
    PyObject* stop = PyObject_CallOneArg(PyExc_StopIteration, result);
    Py_DECREF(result);
    if (stop) {
        PyErr_SetObject(PyExc_StopIteration, stop);
        Py_DECREF(stop);
    }
    return nullptr;
}

template <PySendResult (*send)(PyObject*, PyObject*, PyObject**)>
PyObject* send_method(PyObject* self, PyObject* value) {
    PyObject* result = nullptr;
    const PySendResult status = send(self, value, &result);
    return status == PYGEN_RETURN ? stop_iteration(result) : result;
}

template <PySendResult (*send)(PyObject*, PyObject*, PyObject**)>
PyObject* next_slot(PyObject* self) {
    return send_method<send>(self, Py_None);
}

// ---- Pending: what waits for one operation, or has its result already

struct Pending {
    PyObject_HEAD
    int64_t handle;   // of the operation; -1 when there is nothing to wait for any more
    PyObject* value;  // what there is already
};

PySendResult pending_send(PyObject* self, PyObject* value, PyObject** result) {
    auto* pending = reinterpret_cast<Pending*>(self);
    if (pending->handle >= 0) {
        *result = PyLong_FromLongLong(pending->handle);
        pending->handle = -1;
        return *result ? PYGEN_NEXT : PYGEN_ERROR;
    }
    *result = pending->value ? std::exchange(pending->value, nullptr) : Py_NewRef(value);
    return PYGEN_RETURN;
}

void pending_dealloc(PyObject* self) {
    Py_XDECREF(reinterpret_cast<Pending*>(self)->value);
    PyObject_Free(self);
}

PyMethodDef pending_methods[] = {{"send", send_method<pending_send>, METH_O, nullptr}, {}};
PyAsyncMethods pending_async = {PyObject_SelfIter, nullptr, nullptr, pending_send};
PyTypeObject pending_type = [] {
    PyTypeObject type = {PyVarObject_HEAD_INIT(nullptr, 0)};
    type.tp_name = "nicscope_native.Pending";
    type.tp_doc = "An operation that is waited for.";
    type.tp_basicsize = sizeof(Pending);
    type.tp_flags = Py_TPFLAGS_DEFAULT;
    type.tp_dealloc = pending_dealloc;
    type.tp_as_async = &pending_async;
    type.tp_iter = PyObject_SelfIter;
    type.tp_iternext = next_slot<pending_send>;
    type.tp_methods = pending_methods;
    return type;
}();

PyObject* make_pending(int64_t handle, PyObject* value = nullptr) {
    auto* pending = PyObject_New(Pending, &pending_type);
    if (!pending) throw nb::python_error();
    pending->handle = handle;
    pending->value = value;
    return reinterpret_cast<PyObject*>(pending);
}

// ---- Issuer

// What a name costs: sw.issue.Charge.
struct Charge {
    uint64_t cycles = 0;
    uint64_t uops = 0;
    uint64_t text = 0;  // physical address
    uint64_t lines = 0;
};

inline Charge charge_of(PyObject* object) {
    if (!PyTuple_Check(object) || PyTuple_GET_SIZE(object) != 4) {
        PyErr_SetString(PyExc_TypeError, "a cost is a tuple of four numbers");
        throw nb::python_error();
    }
    return {unsigned_of(PyTuple_GET_ITEM(object, 0)), unsigned_of(PyTuple_GET_ITEM(object, 1)),
            unsigned_of(PyTuple_GET_ITEM(object, 2)), unsigned_of(PyTuple_GET_ITEM(object, 3))};
}

class IssuerState {
public:
    IssuerState(nb::object engine, nb::dict costs, nb::list functions)
        : engine_(engine), loop_(*nb::inst_ptr<Loop>(engine)), costs_(std::move(costs)),
          functions_(std::move(functions)) {}

    uint32_t tag = 0;
    int context = -1;

    // An operation of one micro-operation.
    int64_t queue(Kind kind, uint64_t address, uint64_t size, uint8_t notify, int64_t after = -1,
                  const uint8_t* data = nullptr, uint64_t cycles = 0, int64_t argument = 0) {
        Operation op;
        Loop::fill(op, kind, address, size, cycles, 1, argument);
        if (data) std::memcpy(op.data, data, data_bytes(op.kind, op.size));
        return queue(op, notify, after);
    }

    // One of none.
    int64_t control(Kind kind, uint64_t address, uint8_t notify, int64_t argument) {
        Operation op;
        Loop::fill(op, kind, address, 0, 0, 0, argument);
        return queue(op, notify, -1);
    }

    int64_t next_handle() const { return loop_.next_handle(); }

    void execute(Charge charge, int64_t after = -1) {
        if (!charge.cycles) return;
        // More micro-operations than an operation can stand for become several of equal shares, the text with the first.
        const uint64_t wanted = std::min((charge.uops + UOPS_MAX - 1) / UOPS_MAX, charge.cycles);
        const uint64_t parts = std::max(wanted, uint64_t{1});
        for (uint64_t n = 0; n < parts; ++n) {
            const uint64_t cycles = (n + 1) * charge.cycles / parts - n * charge.cycles / parts;
            const uint64_t uops = (n + 1) * charge.uops / parts - n * charge.uops / parts;
            Operation op;
            Loop::fill(op, EXECUTE, charge.text, 0, cycles, std::min(std::max(uops, uint64_t{1}), UOPS_MAX),
                       static_cast<int64_t>(charge.lines));
            queue(op, Notify::NO, after);
            charge.text = charge.lines = 0;
            after = -1;
        }
    }

    // The charge of a function.
    const Charge& charge(size_t number) {
        while (charges_.size() <= number) {
            PyObject* name = PyList_GetItem(functions_.ptr(), static_cast<Py_ssize_t>(charges_.size()));
            if (!name) throw nb::python_error();
            PyObject* cost = cost_of(name);
            charges_.push_back(cost ? charge_of(cost) : Charge{});
        }
        return charges_[number];
    }

    // A cost by name, borrowed; nullptr if there is none.
    PyObject* cost_of(PyObject* name) const {
        PyObject* cost = PyDict_GetItemWithError(costs_.ptr(), name);
        if (!cost && PyErr_Occurred()) throw nb::python_error();
        return cost;
    }

    int64_t load(uint64_t address, uint64_t size, uint8_t notify, int64_t after) {
        return queue(LOAD, address, size, notify, after);
    }

    // One load for each line; returns the handle of the last.
    int64_t load_pieces(uint64_t address, uint64_t size, uint8_t notify, int64_t after, bool number) {
        loop_.open_group(context, number ? Group::NUMBER : Group::BYTES, size);
        int64_t last = -1;
        for (uint64_t done = 0; done < size;) {
            const uint64_t length = std::min(size - done, LINE_BYTES - (address + done) % LINE_BYTES);
            last = load(address + done, length, notify | Notify::GROUP, after);
            done += length;
        }
        return last;
    }

    // Several places, their addresses counted from `base`; returns the handle of the last load.
    int64_t load_all(uint64_t base, PyObject* const* places, Py_ssize_t count, int64_t after) {
        loop_.open_group(context, Group::LIST, static_cast<size_t>(count));
        int64_t last = -1;
        for (Py_ssize_t n = 0; n < count; ++n) {
            const auto [offset, size] = pair_of(places[n]);
            last = load(base + offset, size, Notify::ISSUE | Notify::GROUP, after);
        }
        return last;
    }

    void store(Kind kind, uint64_t address, PyObject* value, uint64_t size) {
        uint64_t number;
        const uint8_t* data;
        if (PyBytes_Check(value)) {
            Loop::check_length(static_cast<size_t>(PyBytes_GET_SIZE(value)), size);
            data = reinterpret_cast<const uint8_t*>(PyBytes_AS_STRING(value));
        } else {
            number = Loop::number_of(value, size);
            data = reinterpret_cast<const uint8_t*>(&number);
        }
        for (uint64_t done = 0;;) {
            const uint64_t room = LINE_BYTES - (address + done) % LINE_BYTES;
            const uint64_t length = kind == MMIO_WRITE ? size : std::min(size - done, room);
            queue(kind, address + done, length, Notify::NO, -1, data + done);
            done += length;
            if (done >= size) return;
        }
    }

private:
    int64_t queue(Operation& op, uint8_t notify, int64_t after) {
        const int64_t handle = loop_.queue(context, op, notify, after);
        loop_.tag(static_cast<uint16_t>(tag));
        return handle;
    }

    nb::object engine_;
    Loop& loop_;
    nb::dict costs_;
    nb::list functions_;
    std::vector<Charge> charges_;  // by function number
};

struct Issuer {
    PyObject_HEAD
    IssuerState state;
};

IssuerState& state_of(PyObject* self) { return reinterpret_cast<Issuer*>(self)->state; }

// ---- Call and Routine: coroutines that run as functions
//
// Calls are not nested in one another: an `await` of one hands it up to the routine, which runs it by itself and gives
// its result back. So what an operation reads reaches the innermost function at once, however deep that is.

struct Call {
    PyObject_HEAD
    PyObject* issuer;
    PyObject* code;  // none once the routine has it
    uint32_t number;
    int32_t mode;  // -1: the caller's
};

PySendResult call_send(PyObject* self, PyObject* value, PyObject** result) {
    const bool begun = !reinterpret_cast<Call*>(self)->code;
    *result = Py_NewRef(begun ? value : self);
    return begun ? PYGEN_RETURN : PYGEN_NEXT;
}

int call_traverse(PyObject* self, visitproc visit, void* arg) {
    Py_VISIT(reinterpret_cast<Call*>(self)->code);
    Py_VISIT(reinterpret_cast<Call*>(self)->issuer);
    return 0;
}

int call_clear(PyObject* self) {
    Py_CLEAR(reinterpret_cast<Call*>(self)->code);
    return 0;
}

void call_dealloc(PyObject* self) {
    PyObject_GC_UnTrack(self);
    call_clear(self);
    Py_CLEAR(reinterpret_cast<Call*>(self)->issuer);
    PyObject_GC_Del(self);
}

PyMethodDef call_methods[] = {{"send", send_method<call_send>, METH_O, nullptr}, {}};
PyAsyncMethods call_async = {PyObject_SelfIter, nullptr, nullptr, call_send};
PyTypeObject call_type = [] {
    PyTypeObject type = {PyVarObject_HEAD_INIT(nullptr, 0)};
    type.tp_name = "nicscope_native.Call";
    type.tp_doc = "A coroutine that runs as a function, in a routine.";
    type.tp_basicsize = sizeof(Call);
    type.tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC;
    type.tp_dealloc = call_dealloc;
    type.tp_traverse = call_traverse;
    type.tp_clear = call_clear;
    type.tp_as_async = &call_async;
    type.tp_iter = PyObject_SelfIter;
    type.tp_iternext = next_slot<call_send>;
    type.tp_methods = call_methods;
    return type;
}();

// A coroutine of a routine, with what it was called by.
struct Activation {
    nb::object code;
    nb::object issuer;  // none for the outermost, which is no call
    uint32_t caller = 0;  // tag
};

struct Routine {
    PyObject_HEAD
    std::vector<Activation> stack;  // the innermost last
};

std::vector<Activation>& stack_of(PyObject* self) { return reinterpret_cast<Routine*>(self)->stack; }

// Let a call run innermost; false with an exception.
bool begin_call(std::vector<Activation>& stack, Call& call) {
    return guarded(
        [&] {
            IssuerState& issuer = state_of(call.issuer);
            const uint32_t caller = issuer.tag;
            const uint32_t mode = call.mode < 0 ? caller & ~FUNCTION_MASK : static_cast<uint32_t>(call.mode);
            issuer.tag = mode | call.number;
            stack.push_back({nb::steal(std::exchange(call.code, nullptr)), nb::borrow(call.issuer), caller});
            issuer.execute(issuer.charge(call.number));
            return true;
        },
        false);
}

// Raise the current exception where a coroutine waits.
PySendResult throw_into(PyObject* code, PyObject** result) {
    PyObject *type, *error, *trace;
    PyErr_Fetch(&type, &error, &trace);
    PyErr_NormalizeException(&type, &error, &trace);
    if (trace) PyException_SetTraceback(error, trace);
    *result = PyObject_CallMethod(code, "throw", "O", error);
    Py_XDECREF(type);
    Py_XDECREF(error);
    Py_XDECREF(trace);
    if (*result) return PYGEN_NEXT;
    if (!PyErr_ExceptionMatches(PyExc_StopIteration)) return PYGEN_ERROR;
    PyErr_Fetch(&type, &error, &trace);
    PyErr_NormalizeException(&type, &error, &trace);
    *result = PyObject_GetAttrString(error, "value");
    Py_XDECREF(type);
    Py_XDECREF(error);
    Py_XDECREF(trace);
    return *result ? PYGEN_RETURN : PYGEN_ERROR;
}

PySendResult routine_send(PyObject* self, PyObject* value, PyObject** result) {
    auto& stack = stack_of(self);
    if (stack.empty()) {
        PyErr_SetString(PyExc_RuntimeError, "the routine has finished");
        return PYGEN_ERROR;
    }
    nb::object given = nb::borrow(value);  // invalid: an exception
    for (;;) {
        PyObject* const code = stack.back().code.ptr();
        PyObject* got = nullptr;
        const PySendResult status = given.is_valid() ? PyIter_Send(code, given.ptr(), &got) : throw_into(code, &got);
        if (status == PYGEN_NEXT) {
            if (!Py_IS_TYPE(got, &call_type)) {
                *result = got;
                return PYGEN_NEXT;
            }
            const nb::object call = nb::steal(got);
            given = begin_call(stack, *reinterpret_cast<Call*>(got)) ? nb::none() : nb::object();
            continue;
        }
        const Activation ended = std::move(stack.back());
        stack.pop_back();
        if (stack.empty()) {
            *result = got;
            return status;
        }
        if (status == PYGEN_RETURN) state_of(ended.issuer.ptr()).tag = ended.caller;
        given = nb::steal(got);
    }
}

int routine_traverse(PyObject* self, visitproc visit, void* arg) {
    for (const Activation& activation : stack_of(self)) {
        Py_VISIT(activation.code.ptr());
        Py_VISIT(activation.issuer.ptr());
    }
    return 0;
}

// Abandoned: the innermost ends first.
int routine_clear(PyObject* self) {
    auto& stack = stack_of(self);
    while (!stack.empty()) {
        const Activation ended = std::move(stack.back());
        stack.pop_back();
    }
    return 0;
}

void routine_dealloc(PyObject* self) {
    PyObject_GC_UnTrack(self);
    routine_clear(self);
    std::destroy_at(&stack_of(self));
    PyObject_GC_Del(self);
}

PyMethodDef routine_methods[] = {{"send", send_method<routine_send>, METH_O, nullptr}, {}};
PyAsyncMethods routine_async = {PyObject_SelfIter, nullptr, nullptr, routine_send};
PyTypeObject routine_type = [] {
    PyTypeObject type = {PyVarObject_HEAD_INIT(nullptr, 0)};
    type.tp_name = "nicscope_native.Routine";
    type.tp_doc = "What a context runs: a coroutine and the functions it is in.";
    type.tp_basicsize = sizeof(Routine);
    type.tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC;
    type.tp_dealloc = routine_dealloc;
    type.tp_traverse = routine_traverse;
    type.tp_clear = routine_clear;
    type.tp_as_async = &routine_async;
    type.tp_iter = PyObject_SelfIter;
    type.tp_iternext = next_slot<routine_send>;
    type.tp_methods = routine_methods;
    return type;
}();

// ---- The issuer's methods: (address, …) as in sw/issue.py

using Arguments = PyObject* const*;

PyObject* none() { return Py_NewRef(Py_None); }

template <PyObject* (*method)(IssuerState&, Arguments, Py_ssize_t), Py_ssize_t least, Py_ssize_t most>
PyObject* issuer_method(PyObject* self, Arguments args, Py_ssize_t count) {
    if (count < least || (most >= 0 && count > most)) {
        PyErr_Format(PyExc_TypeError, "takes %zd to %zd arguments, not %zd", least, most, count);
        return nullptr;
    }
    return guarded([&] { return method(state_of(self), args, count); }, nullptr);
}

// The same with one argument by name, `after`: a handle; -1 without it.
template <PyObject* (*method)(IssuerState&, Arguments, Py_ssize_t, int64_t), Py_ssize_t least, Py_ssize_t most>
PyObject* issuer_after_method(PyObject* self, Arguments args, Py_ssize_t count, PyObject* names) {
    if (count < least || (most >= 0 && count > most)) {
        PyErr_Format(PyExc_TypeError, "takes %zd to %zd arguments, not %zd", least, most, count);
        return nullptr;
    }
    if (names && (PyTuple_GET_SIZE(names) != 1 ||
                  PyUnicode_CompareWithASCIIString(PyTuple_GET_ITEM(names, 0), "after") != 0)) {
        PyErr_SetString(PyExc_TypeError, "the only argument by name is after");
        return nullptr;
    }
    return guarded([&] { return method(state_of(self), args, count, names ? signed_of(args[count]) : -1); }, nullptr);
}

PyObject* issuer_enter(IssuerState& issuer, Arguments args, Py_ssize_t) {
    issuer.context = static_cast<int>(signed_of(args[0]));
    const auto tag = static_cast<uint32_t>(unsigned_of(args[1]));
    return PyLong_FromUnsignedLong(std::exchange(issuer.tag, tag));
}

PyObject* loaded(IssuerState& issuer, uint64_t address, uint64_t size, uint8_t notify, int64_t after) {
    if (address % LINE_BYTES + size > LINE_BYTES)
        return make_pending(issuer.load_pieces(address, size, notify, after, size <= 8));
    return make_pending(issuer.load(address, size, notify, after));
}

PyObject* issuer_load(IssuerState& issuer, Arguments args, Py_ssize_t, int64_t after) {
    return loaded(issuer, unsigned_of(args[0]), unsigned_of(args[1]), Notify::ISSUE, after);
}

PyObject* issuer_load_now(IssuerState& issuer, Arguments args, Py_ssize_t, int64_t after) {
    return loaded(issuer, unsigned_of(args[0]), unsigned_of(args[1]), Notify::COMPLETE, after);
}

PyObject* issuer_get(IssuerState& issuer, Arguments args, Py_ssize_t, int64_t after) {
    const auto [offset, size] = pair_of(args[1]);
    return loaded(issuer, unsigned_of(args[0]) + offset, size, Notify::ISSUE, after);
}

PyObject* issuer_load_bytes(IssuerState& issuer, Arguments args, Py_ssize_t, int64_t after) {
    const uint64_t size = unsigned_of(args[1]);
    if (!size) return make_pending(-1, PyBytes_FromStringAndSize(nullptr, 0));
    return make_pending(issuer.load_pieces(unsigned_of(args[0]), size, Notify::ISSUE, after, false));
}

PyObject* loaded_all(IssuerState& issuer, uint64_t base, Arguments places, Py_ssize_t count, int64_t after) {
    if (!count) return make_pending(-1, PyList_New(0));
    return make_pending(issuer.load_all(base, places, count, after));
}

PyObject* issuer_load_all(IssuerState& issuer, Arguments args, Py_ssize_t count, int64_t after) {
    return loaded_all(issuer, 0, args, count, after);
}

PyObject* issuer_get_all(IssuerState& issuer, Arguments args, Py_ssize_t count, int64_t after) {
    return loaded_all(issuer, unsigned_of(args[0]), args + 1, count - 1, after);
}

PyObject* issuer_load_begin(IssuerState& issuer, Arguments args, Py_ssize_t, int64_t after) {
    return PyLong_FromLongLong(issuer.load(unsigned_of(args[0]), unsigned_of(args[1]), Notify::ISSUE, after));
}

PyObject* issuer_touch(IssuerState& issuer, Arguments args, Py_ssize_t, int64_t after) {
    issuer.load(unsigned_of(args[0]), unsigned_of(args[1]), Notify::NO, after);
    return none();
}

PyObject* issuer_prefetch(IssuerState& issuer, Arguments args, Py_ssize_t) {
    issuer.queue(PREFETCH, unsigned_of(args[0]), 1, Notify::NO);
    return none();
}

PyObject* issuer_store(IssuerState& issuer, Arguments args, Py_ssize_t) {
    issuer.store(STORE, unsigned_of(args[0]), args[1], unsigned_of(args[2]));
    return none();
}

PyObject* issuer_put(IssuerState& issuer, Arguments args, Py_ssize_t) {
    const auto [offset, size] = pair_of(args[1]);
    issuer.store(STORE, unsigned_of(args[0]) + offset, args[2], size);
    return none();
}

PyObject* issuer_store_nt(IssuerState& issuer, Arguments args, Py_ssize_t) {
    issuer.store(STORE_NT, unsigned_of(args[0]), args[1], unsigned_of(args[2]));
    return none();
}

PyObject* issuer_clflush(IssuerState& issuer, Arguments args, Py_ssize_t) {
    issuer.queue(CLFLUSH, unsigned_of(args[0]), 1, Notify::NO);
    return none();
}

PyObject* issuer_atomic(IssuerState& issuer, Arguments args, Py_ssize_t count) {
    const uint64_t data[LINE_BYTES / 8] = {unsigned_of(args[3]), count > 4 ? unsigned_of(args[4]) : 0};
    return make_pending(issuer.queue(ATOMIC, unsigned_of(args[0]), unsigned_of(args[1]), Notify::COMPLETE, -1,
                                     reinterpret_cast<const uint8_t*>(data), 0, signed_of(args[2])));
}

PyObject* issuer_poll(IssuerState& issuer, Arguments args, Py_ssize_t) {
    const uint64_t size = unsigned_of(args[1]);
    uint64_t value = 0;
    if (PyBytes_Check(args[2])) {
        Loop::check_length(static_cast<size_t>(PyBytes_GET_SIZE(args[2])), size);
        std::memcpy(&value, PyBytes_AS_STRING(args[2]), std::min(size, uint64_t{8}));
    } else {
        value = Loop::number_of(args[2], size);
    }
    return make_pending(issuer.queue(POLL, unsigned_of(args[0]), size, Notify::COMPLETE, -1,
                                     reinterpret_cast<const uint8_t*>(&value), unsigned_of(args[3]),
                                     signed_of(args[4])));
}

PyObject* issuer_mmio_read(IssuerState& issuer, Arguments args, Py_ssize_t count) {
    const uint64_t size = count > 1 ? unsigned_of(args[1]) : 4;
    return make_pending(issuer.queue(MMIO_READ, unsigned_of(args[0]), size, Notify::COMPLETE));
}

PyObject* issuer_mmio_write(IssuerState& issuer, Arguments args, Py_ssize_t count) {
    issuer.store(MMIO_WRITE, unsigned_of(args[0]), args[1], count > 2 ? unsigned_of(args[2]) : 4);
    return none();
}

PyObject* issuer_execute(IssuerState& issuer, Arguments args, Py_ssize_t count, int64_t after) {
    const long times = count > 1 ? signed_of(args[1]) : 1;
    Charge charge;
    if (PyLong_Check(args[0])) {
        const long cycles = signed_of(args[0]);
        if (cycles > 0) charge.cycles = charge.uops = static_cast<uint64_t>(cycles);
    } else if (PyTuple_Check(args[0])) {
        charge = charge_of(args[0]);
    } else {
        PyObject* cost = issuer.cost_of(args[0]);
        if (!cost) {
            PyErr_SetObject(PyExc_KeyError, args[0]);
            return nullptr;
        }
        charge = charge_of(cost);
    }
    charge.cycles *= static_cast<uint64_t>(std::max(times, 0L));
    charge.uops *= static_cast<uint64_t>(std::max(times, 0L));
    issuer.execute(charge, after);
    return none();
}

PyObject* issuer_plain(IssuerState& issuer, Arguments args, Py_ssize_t count) {
    issuer.control(static_cast<Kind>(signed_of(args[0])), count > 1 ? unsigned_of(args[1]) : 0, Notify::NO, 0);
    return none();
}

PyObject* issuer_wait(IssuerState& issuer, Arguments args, Py_ssize_t count) {
    const int64_t argument = count > 1 ? signed_of(args[1]) : 0;
    return make_pending(issuer.control(static_cast<Kind>(signed_of(args[0])), 0, Notify::COMPLETE, argument));
}

PyObject* issuer_next_handle(IssuerState& issuer, Arguments, Py_ssize_t) {
    return PyLong_FromLongLong(issuer.next_handle());
}

PyObject* issuer_call(PyObject* self, Arguments args, Py_ssize_t count) {
    if (count != 3) {
        PyErr_SetString(PyExc_TypeError, "call takes a coroutine, a number and a mode");
        return nullptr;
    }
    const long number = PyLong_AsLong(args[1]), mode = PyLong_AsLong(args[2]);
    if (PyErr_Occurred()) return nullptr;
    auto* call = PyObject_GC_New(Call, &call_type);
    if (!call) return nullptr;
    call->issuer = Py_NewRef(self);
    call->code = Py_NewRef(args[0]);
    call->number = static_cast<uint32_t>(number);
    call->mode = static_cast<int32_t>(mode);
    PyObject_GC_Track(call);
    return reinterpret_cast<PyObject*>(call);
}

PyObject* issuer_routine(IssuerState&, Arguments args, Py_ssize_t) {
    auto* routine = PyObject_GC_New(Routine, &routine_type);
    if (!routine) return nullptr;
    new (&routine->stack) std::vector<Activation>{{nb::borrow(args[0]), {}}};
    PyObject_GC_Track(routine);
    return reinterpret_cast<PyObject*>(routine);
}

#define ISSUER_METHOD(name, least, most) \
    {#name, reinterpret_cast<PyCFunction>(issuer_method<issuer_##name, least, most>), METH_FASTCALL, nullptr}

#define ISSUER_AFTER_METHOD(name, least, most)                                                      \
    {#name, reinterpret_cast<PyCFunction>(                                                          \
                reinterpret_cast<void (*)()>(issuer_after_method<issuer_##name, least, most>)),     \
     METH_FASTCALL | METH_KEYWORDS, nullptr}

PyMethodDef issuer_methods[] = {
    ISSUER_METHOD(enter, 2, 2),
    ISSUER_AFTER_METHOD(load, 2, 2),
    ISSUER_AFTER_METHOD(load_now, 2, 2),
    ISSUER_AFTER_METHOD(get, 2, 2),
    ISSUER_AFTER_METHOD(load_bytes, 2, 2),
    ISSUER_AFTER_METHOD(load_all, 0, -1),
    ISSUER_AFTER_METHOD(get_all, 1, -1),
    ISSUER_AFTER_METHOD(load_begin, 2, 2),
    ISSUER_AFTER_METHOD(touch, 2, 2),
    ISSUER_METHOD(prefetch, 1, 1),
    ISSUER_METHOD(store, 3, 3),
    ISSUER_METHOD(put, 3, 3),
    ISSUER_METHOD(store_nt, 3, 3),
    ISSUER_METHOD(clflush, 1, 1),
    ISSUER_METHOD(atomic, 4, 5),
    ISSUER_METHOD(poll, 5, 5),
    ISSUER_METHOD(mmio_read, 1, 2),
    ISSUER_METHOD(mmio_write, 2, 3),
    ISSUER_AFTER_METHOD(execute, 1, 2),
    ISSUER_METHOD(plain, 1, 2),
    ISSUER_METHOD(wait, 1, 2),
    ISSUER_METHOD(next_handle, 0, 0),
    ISSUER_METHOD(routine, 1, 1),
    {"call", reinterpret_cast<PyCFunction>(issuer_call), METH_FASTCALL, nullptr},
    {},
};

#undef ISSUER_METHOD
#undef ISSUER_AFTER_METHOD

void issuer_dealloc(PyObject* self) {
    state_of(self).~IssuerState();
    PyObject_Free(self);
}

PyTypeObject issuer_type = [] {
    PyTypeObject type = {PyVarObject_HEAD_INIT(nullptr, 0)};
    type.tp_name = "nicscope_native.Issuer";
    type.tp_doc = "sw.issue.Issuer";
    type.tp_basicsize = sizeof(Issuer);
    type.tp_flags = Py_TPFLAGS_DEFAULT;
    type.tp_dealloc = issuer_dealloc;
    type.tp_methods = issuer_methods;
    return type;
}();

nb::object make_issuer(nb::object engine, nb::dict costs, nb::list functions) {
    IssuerState state(std::move(engine), std::move(costs), std::move(functions));
    auto* issuer = PyObject_New(Issuer, &issuer_type);
    if (!issuer) throw nb::python_error();
    new (&issuer->state) IssuerState(std::move(state));
    return nb::steal(reinterpret_cast<PyObject*>(issuer));
}

void ready_types() {
    for (PyTypeObject* type : {&pending_type, &call_type, &routine_type, &issuer_type})
        if (PyType_Ready(type) < 0) throw nb::python_error();
}

}  // namespace
