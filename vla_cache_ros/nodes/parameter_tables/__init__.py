"""One table of parameters per node; a process imports those of its own nodes alone."""
