#!/bin/bash
# Compile the objects of the tests again, with Debian clang 19.1.7.
set -euo pipefail
cd "$(dirname "$0")"
for source in *.c; do
    "${CLANG:-clang-19}" -target bpf -mcpu=v3 -O2 -g -ffile-prefix-map="$PWD"=. -c "$source" -o "${source%.c}.o"
    "${STRIP:-llvm-strip-19}" --strip-debug "${source%.c}.o"
done
