"""`vmla-export verify`: compares an engine with the eager model, as a whole and layer by layer."""
