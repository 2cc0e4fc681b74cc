"""The eBPF verifier: accepts a program or refuses it, with Linux's errno and words.

It follows ``kernel/bpf/verifier.c`` as of Linux 6.18 and Documentation/bpf/verifier.rst. :mod:`structure
<sw.bpf.verifier.structure>` looks at the program as a whole; then :mod:`walker <sw.bpf.verifier.walker>` follows every
path with what is known of each register (``tnum``, ``bounds``, ``alu``, ``branches``, ``registers``, ``pointers``) and
stack slot (``stack``), checks each access (``memory``, ``calls``), and skips what an earlier path covers (``pruning``,
``precision``, ``liveness``).
"""

from sw.bpf.verifier.errors import VerifierError
from sw.bpf.verifier.verify import Verified, verify

__all__ = ["Verified", "VerifierError", "verify"]
