"""AF_XDP in the kernel (net/xdp, include/net/xdp_sock*.h): sockets whose rings and packets lie in a program's memory."""
