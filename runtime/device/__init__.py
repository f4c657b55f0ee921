"""What depends on the machine: CUDA graphs, CPU threads, memory, worker threads."""
