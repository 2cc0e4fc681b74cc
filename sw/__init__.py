"""What would be code on the host: the kernel's receive path, drivers, applications, as coroutines on modelled cores."""
