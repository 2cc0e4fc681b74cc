#!/usr/bin/env bash
# Record traffic/programs.pcapng: real programs talking between two network namespaces made for the purpose.
#
#   server 10.0.0.1, 02:00:00:00:00:01   dnsmasq (DNS), memcached (UDP and TCP), Python's http.server
#   client 10.0.0.2, 02:00:00:00:00:02   dig, memcached's text protocol over UDP, curl, ping
#
# The capture is taken at the server's interface, both directions. Checksum and segmentation offloads of
# the virtual link are off, so that every frame stands in the capture as it would on a real wire.
# Needs root and Debian's dnsmasq, dnsutils, memcached, curl, iputils-ping, iproute2, ethtool, tcpdump.
set -euo pipefail
cd "$(dirname "$0")"
out=${1:-programs.pcapng}
work=$(mktemp -d)
server=nicscope-server client=nicscope-client
pids=()

clean() {
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
    ip netns del $server 2>/dev/null || true
    ip netns del $client 2>/dev/null || true
    rm -rf "$work"
}
trap clean EXIT

ip netns add $server
ip netns add $client
ip -n $server link add eth0 address 02:00:00:00:00:01 type veth peer name eth0 address 02:00:00:00:00:02 netns $client
for side in $server $client; do
    # No IPv6: router solicitations would only be noise.
    ip netns exec $side sysctl -qw net.ipv6.conf.all.disable_ipv6=1 2>/dev/null || true
    ip -n $side link set lo up
    ip netns exec $side ethtool -K eth0 tx off rx off tso off gso off gro off >/dev/null 2>&1
done
ip -n $server addr add 10.0.0.1/24 dev eth0
ip -n $client addr add 10.0.0.2/24 dev eth0
ip -n $server link set eth0 up
ip -n $client link set eth0 up

# Servers
{
    for i in $(seq 1 40); do echo "address=/host$i.example/192.0.2.$i"; done
} >"$work/dns.conf"
ip netns exec $server dnsmasq -k --no-resolv --no-hosts --port=53 --conf-file="$work/dns.conf" --user=root \
    --pid-file="$work/dns.pid" >/dev/null 2>&1 &
pids+=($!)
ip netns exec $server memcached -u nobody -l 10.0.0.1 -p 11211 -U 11211 -m 16 >/dev/null 2>&1 &
pids+=($!)
mkdir "$work/web"
python3 - "$work/web" <<'PY'
import pathlib, sys
page = "".join(f"<p>Paragraph {i} of a page long enough to need several segments.</p>\n" for i in range(900))
pathlib.Path(sys.argv[1], "index.html").write_text(f"<html><body>\n{page}</body></html>\n")
PY
(cd "$work/web" && exec ip netns exec $server python3 -m http.server --bind 10.0.0.1 80 >/dev/null 2>&1) &
pids+=($!)
sleep 1

ip netns exec $server tcpdump -q -i eth0 -s 0 -U --immediate-mode -w "$work/capture.pcap" 2>/dev/null &
tcpdump=$!
pids+=($tcpdump)
sleep 1

# Clients
in_client() { ip netns exec $client "$@"; }
in_client ping -q -c 5 -i 0.05 10.0.0.1 >/dev/null
for i in $(seq 1 40); do in_client dig +short +tries=1 +time=1 @10.0.0.1 "host$i.example" >/dev/null; done
in_client python3 - <<'PY'
"""memcached over UDP: an 8-byte frame header (request id, sequence, count, reserved) before each text command."""
import socket

peer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
peer.settimeout(1)
for request in range(100):
    key = f"key{request % 25}"
    if request < 25:
        value = "v" * (10 + 40 * request)
        command = f"set {key} 0 0 {len(value)}\r\n{value}\r\n"
    else:
        command = f"get {key}\r\n"
    header = request.to_bytes(2, "big") + (0).to_bytes(2, "big") + (1).to_bytes(2, "big") + bytes(2)
    peer.sendto(header + command.encode(), ("10.0.0.1", 11211))
    peer.recv(65536)
PY
for i in 1 2 3; do in_client curl -s -o /dev/null http://10.0.0.1/; done
# A port nobody listens on.
in_client python3 -c 'import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"anyone?", ("10.0.0.1", 9999))'
sleep 0.5
kill $tcpdump
wait $tcpdump 2>/dev/null || true

python3 - "$work/capture.pcap" "$out" <<'PY'
"""Rewrite as pcapng with nanosecond timestamps counted from the first packet."""
import struct
import sys

raw = open(sys.argv[1], "rb").read()
magic, = struct.unpack_from("<I", raw)
scale = {0xA1B2C3D4: 1000, 0xA1B23C4D: 1}[magic]
packets, at = [], 24
while at < len(raw):
    seconds, fraction, kept, original = struct.unpack_from("<4I", raw, at)
    packets.append((seconds * 10**9 + fraction * scale, raw[at + 16 : at + 16 + kept], original))
    at += 16 + kept


def option(code, value):
    return struct.pack("<HH", code, len(value)) + value + bytes(-len(value) % 4)


def block(kind, body):
    return struct.pack("<II", kind, len(body) + 12) + body + struct.pack("<I", len(body) + 12)


end = option(0, b"")
with open(sys.argv[2], "wb") as out:
    comment = option(1, b"dig, memcached over UDP, curl and ping between two network namespaces; see record.sh")
    out.write(block(0x0A0D0D0A, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1) + comment + end))
    out.write(block(1, struct.pack("<HHI", 1, 0, 0) + option(2, b"eth0") + option(9, b"\x09") + end))
    for time, data, original in packets:
        time -= packets[0][0]
        body = struct.pack("<5I", 0, time >> 32, time & 0xFFFFFFFF, len(data), original)
        out.write(block(6, body + data + bytes(-len(data) % 4)))
print(f"{sys.argv[2]}: {len(packets)} packets")
PY
