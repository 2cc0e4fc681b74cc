"""Maps in modelled memory, with the kernel's layouts and functions."""
