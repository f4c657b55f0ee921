"""For each kind of document, its tables and plots."""
