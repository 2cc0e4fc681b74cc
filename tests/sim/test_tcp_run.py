"""Path tcp on the RTL: a peer's stream arrives whole, and every frame has exactly one account."""

from fractions import Fraction

import pytest

from hw.config import load_machine
from sim.build.design import Design
from sim.result import summarise
from sim.session import Software, observe
from sim.wire.frames import generate, with_fcs


@pytest.fixture(scope="module")
def native():
    from sim.build.native import build_native
    from sim.engine.native import NativeEngine

    build = build_native(Design(load_machine("tiny")))
    return lambda: NativeEngine(build)


@pytest.mark.parametrize("application", ["sink", "echo"])
@pytest.mark.parametrize("size", [64, 1000])
def test_a_stream_on_the_machine(native, application, size):
    machine = load_machine("tiny")
    count = 12
    frames = [(Fraction(0), with_fcs(data)) for data in generate(size, count, seed=3)]
    software = Software("tcp", application, background=False)
    observation = native().execute(lambda engine: observe(engine, machine, frames, software))
    result, fates = summarise(observation, machine, "tcp", application, {})

    peer = result["peer"]
    payload = size - 4 - 54
    assert peer["error"] == "" and peer["written_bytes"] == count * payload
    (stream,) = peer["streams"]
    assert (stream["length"], stream["error"]) == (count * payload, 0)
    if application == "sink":
        assert stream["crc32"] == peer["written_crc32"]
    else:
        assert (peer["received_bytes"], peer["received_crc32"]) == (peer["written_bytes"], peer["written_crc32"])
    packets = result["packets"]
    assert packets["delivered"] == count and packets["in_flight"] == 0 and packets["dropped"] == {}
    assert packets["offered"] == packets["delivered"] + packets["consumed"]
    assert packets["consumed"] >= 3  # SYN, ACK, FIN
    assert all(fate.consumed != (fate.delivered_tick is not None) for fate in fates)
    assert result["rates"]["goodput_gbps"] > 0
