"""The parts of an optimizer step: AdamW, Muon, and the precision."""
