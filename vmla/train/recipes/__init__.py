"""Named settings that determine a trained model, and the memory that they take."""
