"""Maps in memory, against a dictionary and against the host's kernel; and what the system call refuses."""

import errno
import random
import struct

import pytest

from sw.bpf.errors import BpfError
from sw.bpf.map.hash import BUCKET, HTAB_ELEM
from sw.bpf.map.jhash import jhash
from sw.bpf.maps import MapDefinition, MapFlag, MapType, UpdateFlag
from tests.sw.bpf import host_bpf
from tests.sw.bpf.bench import Bench


def create(bench: Bench, kind: MapType, key: int, value: int, entries: int, flags: int = 0) -> int:
    return bench.do(bench.bpf.map_create(bench.core, MapDefinition(kind, key, value, entries, flags, "thing")))


class Ours:
    """A map behind the model's system call, with plain calls."""

    def __init__(self, bench: Bench, kind: MapType, key: int, value: int, entries: int):
        self.bench = bench
        self.fd = create(bench, kind, key, value, entries)

    def _call(self, coroutine):
        try:
            return self.bench.do(coroutine)
        except BpfError as error:
            return error.errno

    def update(self, key, value, flags):
        return self._call(self.bench.bpf.map_update_elem(self.bench.core, self.fd, key, value, flags))

    def lookup(self, key):
        return self._call(self.bench.bpf.map_lookup_elem(self.bench.core, self.fd, key))

    def delete(self, key):
        return self._call(self.bench.bpf.map_delete_elem(self.bench.core, self.fd, key))


class Theirs:
    def __init__(self, *definition: int):
        self.map = host_bpf.HostMap(*definition)

    def _call(self, function, *arguments):
        try:
            return function(*arguments)
        except OSError as error:
            return error.errno

    def update(self, key, value, flags):
        return self._call(self.map.update, key, value, flags)

    def lookup(self, key):
        return self._call(self.map.lookup, key)

    def delete(self, key):
        return self._call(self.map.delete, key)


@pytest.mark.parametrize("kind", [MapType.ARRAY, MapType.HASH])
@pytest.mark.parametrize(("key_size", "value_size"), [(4, 8), (4, 3), (2, 4), (8, 16), (13, 5)])
def test_maps_do_what_the_hosts_do(kind, key_size, value_size):
    """Updates, lookups and deletions at random, errors too, in a map that is full at times."""
    if reason := host_bpf.why_not():
        pytest.skip(reason)
    if kind is MapType.ARRAY and key_size != 4:
        pytest.skip("an array's key has 4 bytes")
    entries = 12
    ours, theirs = Ours(Bench(), kind, key_size, value_size, entries), Theirs(kind, key_size, value_size, entries)
    chance = random.Random(key_size)
    keys = [n.to_bytes(key_size, "little") for n in range(entries + 4)]
    for _ in range(600):
        key, kind_of_call = chance.choice(keys), chance.random()
        if kind_of_call < 0.5:
            value, flags = chance.randbytes(value_size), chance.choice((0, 0, 1, 2, 9))
            assert ours.update(key, value, flags) == theirs.update(key, value, flags)
        elif kind_of_call < 0.7:
            assert ours.delete(key) == theirs.delete(key)
        else:
            assert ours.lookup(key) == theirs.lookup(key)
    theirs.map.close()


@pytest.mark.parametrize("kind", [MapType.HASH, MapType.PERCPU_HASH])
def test_hash_is_a_dictionary(kind):
    """Against a dictionary, with two cores, so that elements come from and go to both lists of free ones."""
    bench = Bench(cores=2)
    fd, model = create(bench, kind, 4, 8, 32), {}
    chance = random.Random(5)
    width = 16 if kind is MapType.PERCPU_HASH else 8
    for _ in range(3000):
        core, key = chance.choice(bench.cores), struct.pack("<I", chance.randrange(48))
        if chance.random() < 0.6:
            value = chance.randbytes(width)
            try:
                bench.do(bench.bpf.map_update_elem(core, fd, key, value))
                model[key] = value
            except BpfError as error:
                assert error.errno == errno.E2BIG and len(model) == 32 and key not in model
        else:
            try:
                bench.do(bench.bpf.map_delete_elem(core, fd, key))
                del model[key]
            except BpfError as error:
                assert error.errno == errno.ENOENT and key not in model
    assert len(model) > 20
    for key, value in model.items():
        assert bench.do(bench.bpf.map_lookup_elem(bench.core, fd, key)) == value


def test_hash_lies_in_memory_as_the_kernels():
    """Bucket, list, hash and key are found where hashtab.c has them."""
    bench = Bench()
    fd = create(bench, MapType.HASH, 4, 8, 8)
    htab = bench.bpf.map(fd)
    key = struct.pack("<I", 77)
    bench.do(bench.bpf.map_update_elem(bench.core, fd, key, struct.pack("<Q", 5)))
    hashed = jhash(key, htab.seed)
    bucket = htab.buckets + (hashed & 7) * BUCKET.size
    element = int.from_bytes(bench.memory[bucket : bucket + 8], "little")
    assert element in range(htab.elems, htab.elems + 64 * 9, 64)
    raw = bytes(bench.memory[element : element + 64])
    assert int.from_bytes(raw[:8], "little") == (hashed & 7) << 1 | 1
    assert HTAB_ELEM.hash.of(raw) == hashed
    assert raw[48:52] == key and raw[56:64] == struct.pack("<Q", 5)


def test_jhash_is_lookup3():
    """The values that Bob Jenkins published with his code."""
    text = b"Four score and seven years ago"
    assert (jhash(b"", 0), jhash(b"", 0xDEADBEEF)) == (0xDEADBEEF, 0xBD5B7DDE)
    assert (jhash(text, 0), jhash(text, 1)) == (0x17770551, 0xCD628161)


def test_percpu_array_has_a_value_for_each_core():
    bench = Bench(cores=3)
    fd = create(bench, MapType.PERCPU_ARRAY, 4, 8, 4)
    values = struct.pack("<3Q", 10, 20, 30)
    bench.do(bench.bpf.map_update_elem(bench.core, fd, struct.pack("<I", 2), values))
    assert bench.do(bench.bpf.map_lookup_elem(bench.core, fd, struct.pack("<I", 2))) == values
    assert bench.do(bench.bpf.map_lookup_elem(bench.core, fd, struct.pack("<I", 1))) == bytes(24)
    with pytest.raises(BpfError, match="a value has 24 bytes, not 8"):
        bench.do(bench.bpf.map_update_elem(bench.core, fd, bytes(4), bytes(8)))


@pytest.mark.parametrize(
    ("definition", "number", "message"),
    [
        (MapDefinition(MapType.ARRAY, 8, 8, 1), errno.EINVAL, "key_size = 8 must be 4"),
        (MapDefinition(MapType.ARRAY, 4, 0, 1), errno.EINVAL, "value_size = 0"),
        (MapDefinition(MapType.HASH, 0, 8, 1), errno.EINVAL, "key_size = 0"),
        (MapDefinition(MapType.HASH, 4, 8, 0), errno.EINVAL, "max_entries = 0 must be at least 1"),
        (MapDefinition(MapType.HASH, 513, 8, 1), errno.E2BIG, "key_size = 513"),
        (MapDefinition(MapType.HASH, 4, 8, 1, MapFlag.MMAPABLE), errno.EINVAL, "map_flags 0x400 are not valid"),
        (MapDefinition(MapType.XSKMAP, 4, 8, 1), errno.EINVAL, "value_size = 8 must be 4"),
        (MapDefinition(MapType.ARRAY, 4, 8, 1, 0, "a" * 16), errno.EINVAL, "more than 15 bytes"),
        (MapDefinition(MapType.ARRAY, 4, 8, 1, 0x180), errno.EINVAL, "exclude each other"),
        (MapDefinition(MapType.PERCPU_ARRAY, 4, 8, 100_000), errno.ENOMEM, "bytes on each core"),
    ],
)
def test_maps_that_are_refused(definition, number, message):
    bench = Bench()
    with pytest.raises(BpfError, match=message) as error:
        bench.do(bench.bpf.map_create(bench.core, definition))
    assert error.value.errno == number
    if number == errno.EINVAL and not definition.name and not host_bpf.why_not():
        with pytest.raises(OSError) as theirs:
            host_bpf.HostMap(
                definition.type, definition.key_size, definition.value_size, definition.max_entries, definition.flags
            )
        assert theirs.value.errno == number


def test_file_descriptors_and_rights():
    bench = Bench()
    fd = create(bench, MapType.ARRAY, 4, 8, 1, MapFlag.RDONLY)
    with pytest.raises(BpfError, match="is RDONLY for user space") as error:
        bench.do(bench.bpf.map_update_elem(bench.core, fd, bytes(4), bytes(8)))
    assert error.value.errno == errno.EPERM
    bench.do(bench.bpf.map_lookup_elem(bench.core, fd, bytes(4)))
    for call in (bench.bpf.program, bench.bpf.close):
        with pytest.raises(BpfError) as error:
            call(fd if call == bench.bpf.program else 99)
        assert error.value.errno == errno.EBADF
    bench.bpf.close(fd)
    with pytest.raises(BpfError, match="is not a map"):
        bench.bpf.map(fd)
    assert create(bench, MapType.ARRAY, 4, 8, 1) == fd


def test_xskmap_takes_sockets_only():
    bench = Bench(find_socket=lambda fd: 0x1000 if fd == 5 else None)
    ours = Ours(bench, MapType.XSKMAP, 4, 4, 4)
    word = lambda n: struct.pack("<I", n)  # noqa: E731
    assert ours.update(word(0), word(6), 0) == errno.EBADF
    assert ours.update(word(4), word(5), 0) == errno.E2BIG
    assert ours.update(word(0), word(5), UpdateFlag.EXIST) == errno.ENOENT
    assert ours.update(word(0), word(5), 0) is None
    assert ours.update(word(0), word(5), UpdateFlag.NOEXIST) == errno.EEXIST
    assert ours.lookup(word(0)) == errno.EOPNOTSUPP
    assert ours.delete(word(0)) is None
    assert ours.delete(word(4)) == errno.EINVAL
