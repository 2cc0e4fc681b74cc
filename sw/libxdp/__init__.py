"""libxdp, as far as a program with an AF_XDP socket needs it. Names are those of its headers, version 1.3."""
