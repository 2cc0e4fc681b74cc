"""Cycles per function derived from the code of Debian's kernel: ``python -m sw.costs.derive --help``.

Steps: the kernel runs under QEMU, which logs what it executes (:mod:`~sw.costs.derive.record`); calls and returns are
followed and every run of code goes to the entry it belongs to (:mod:`~sw.costs.derive.trace`,
:mod:`~sw.costs.derive.paths`); llvm-mca says what that code takes (:mod:`~sw.costs.derive.mca`); the table is
written (:mod:`~sw.costs.derive.table`). docs/costs.md has the method and what is wrong with it.
"""
