"""What ``nicscope bench`` measures: the simulator's own speed, and the modelled core and memory."""
