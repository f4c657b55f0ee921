"""What an optimizer step is made of: AdamW, Muon, and the type that is computed in."""
