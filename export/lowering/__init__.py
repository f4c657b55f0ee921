"""From a model to programs in the precision asked for: traced, calibrated, quantised."""
