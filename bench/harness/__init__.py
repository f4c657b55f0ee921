"""What all benchmarks share: their subjects, timers, counters and documents."""
