"""The parts that depend on the machine: CUDA graphs, CPU threads, memory, worker threads, what clocks decided."""
