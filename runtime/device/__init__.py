"""The parts that depend on the machine: CUDA graphs, threads, memory, and choices by a clock."""
