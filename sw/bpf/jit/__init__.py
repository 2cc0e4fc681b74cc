"""The JIT: a program becomes a Python coroutine function, charged as the x86-64 code that the kernel would emit."""
