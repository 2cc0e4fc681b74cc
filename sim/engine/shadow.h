// The shadow of memory in C++: what sim/engine/shadow.py does, where everything is explained.

#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <new>
#include <vector>

namespace {

constexpr unsigned LINE_BYTES = 64;
constexpr unsigned PHYSICAL_ADDRESS_WIDTH = 40;  // hw.bus.tilelink

enum AtomicFunction : uint8_t { EXCHANGE, ADD, AND, OR, XOR, COMPARE_EXCHANGE };  // hw.bus.core

constexpr uint64_t physical(uint64_t address) { return address & ((uint64_t{1} << PHYSICAL_ADDRESS_WIDTH) - 1); }

// Memory in large pieces, each there once something is written to it. The operating system keeps the rest of it, and of
// the table, out of real memory for as long as it is zero. No access crosses a line.
class Memory {
public:
    Memory() : table_(zeros<uint8_t*>(size_t{1} << (PHYSICAL_ADDRESS_WIDTH - CHUNK_BITS))) {}

    void read(uint64_t address, size_t size, uint8_t* to) const {
        if (const uint8_t* chunk = table_[address >> CHUNK_BITS])
            std::memcpy(to, chunk + (address & OFFSET), size);
        else
            std::memset(to, 0, size);
    }

    // Where these bytes are, to be written.
    uint8_t* at(uint64_t address) {
        uint8_t*& chunk = table_[address >> CHUNK_BITS];
        if (!chunk) {
            chunks_.push_back(zeros<uint8_t>(size_t{1} << CHUNK_BITS));
            chunk = chunks_.back().get();
        }
        return chunk + (address & OFFSET);
    }

private:
    static constexpr unsigned CHUNK_BITS = 20;
    static constexpr uint64_t OFFSET = (uint64_t{1} << CHUNK_BITS) - 1;

    struct Free {
        void operator()(void* pointer) const { std::free(pointer); }
    };
    template <class T>
    using Zeros = std::unique_ptr<T[], Free>;

    template <class T>
    static Zeros<T> zeros(size_t count) {
        auto* pointer = static_cast<T*>(std::calloc(count, sizeof(T)));
        if (!pointer) throw std::bad_alloc();
        return Zeros<T>(pointer);
    }

    Zeros<uint8_t*> table_;
    std::vector<Zeros<uint8_t>> chunks_;
};

// A STORE or ATOMIC that has issued and is not visible yet.
struct PendingStore {
    uint64_t order;    // how many operations of its core issued before it
    uint64_t address;  // physical
    uint8_t size;
    bool atomic;
    uint8_t function;  // of an ATOMIC
    uint8_t data[LINE_BYTES];

    bool overlaps(uint64_t where, size_t length) const { return address < where + length && where < address + size; }

    void write(uint8_t* to) const {
        if (!atomic) {
            std::memcpy(to, data, size);
            return;
        }
        uint64_t old = 0, operand, compared = 0;
        std::memcpy(&old, to, size);
        std::memcpy(&operand, data, 8);
        std::memcpy(&compared, data + 8, size);
        const uint64_t result = function == EXCHANGE ? operand
                                : function == ADD    ? old + operand
                                : function == AND    ? old & operand
                                : function == OR     ? old | operand
                                : function == XOR    ? old ^ operand
                                : old == compared    ? operand
                                                     : old;
        std::memcpy(to, &result, size);
    }
};

template <unsigned CORES>
class Shadow {
public:
    void read(uint64_t address, size_t size, uint8_t* to) const { memory_.read(address, size, to); }

    // ---- Cores

    void issue(unsigned core, const PendingStore& store) { pending_[core].push_back(store); }

    // What a load that issues now is bound to.
    void bound(unsigned core, uint64_t address, size_t size, uint8_t* to) const {
        memory_.read(address, size, to);
        for (const PendingStore& store : pending_[core]) {
            if (!store.overlaps(address, size)) continue;
            const uint64_t begin = std::max(address, store.address);
            const uint64_t end = std::min(address + size, store.address + store.size);
            std::memcpy(to + (begin - address), store.data + (begin - store.address), end - begin);
        }
    }

    // Whether a store of the core older than `order` to any of these bytes is not visible yet.
    bool waits_for_store(unsigned core, uint64_t order, uint64_t address, size_t size) const {
        const auto& pending = pending_[core];
        return std::any_of(pending.begin(), pending.end(), [=](const PendingStore& store) {
            return store.order < order && store.overlaps(address, size);
        });
    }

    // The core's oldest store becomes visible; false if there is none.
    bool visible(unsigned core) {
        auto& pending = pending_[core];
        if (pending.empty()) return false;
        pending.front().write(memory_.at(pending.front().address));
        pending.pop_front();
        return true;
    }

    // ---- Devices, and writes around the caches

    void device_accepted(uint64_t line, uint64_t mask, const uint32_t* data) {
        DeviceWrite& write = device_.emplace_back();
        write.line = line;
        write.mask = mask;
        std::memcpy(write.data, data, LINE_BYTES);
    }

    // The oldest that was accepted becomes visible; false if there is none.
    bool device_done() {
        if (device_.empty()) return false;
        const DeviceWrite& write = device_.front();
        if (write.mask) {
            uint8_t* to = memory_.at(write.line * LINE_BYTES);
            for (unsigned offset = 0; offset < LINE_BYTES; ++offset)
                if (write.mask >> offset & 1) to[offset] = write.data[offset];
        }
        device_.pop_front();
        return true;
    }

private:
    struct DeviceWrite {
        uint64_t line, mask;
        uint8_t data[LINE_BYTES];
    };

    Memory memory_;
    std::array<std::deque<PendingStore>, CORES> pending_;
    std::deque<DeviceWrite> device_;
};

}  // namespace
