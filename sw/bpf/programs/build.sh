#!/bin/bash
# Compile the programs again: only needed after a change of a .c file; the objects are kept beside it.
# The kept ones were made by Debian clang 19.1.7 (package clang-19); another version may choose other instructions.
set -euo pipefail
cd "$(dirname "$0")"
CLANG=${CLANG:-clang-19}
OUT=${1:-.}
for source in *.c; do
    # -g gives BTF; its paths are made relative, so that the objects are the same wherever they are built.
    "$CLANG" -target bpf -mcpu=v3 -O2 -g -Wall -Werror -Wno-pass-failed -ffile-prefix-map="$PWD"=. \
        -c "$source" -o "$OUT/${source%.c}.o"
    # DWARF is not needed: BTF says what a loader wants to know.
    "${STRIP:-llvm-strip-19}" --strip-debug "$OUT/${source%.c}.o"
done
