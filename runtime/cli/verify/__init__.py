"""`vmla-export verify`: an engine beside the eager model, as a whole and layer by layer."""
