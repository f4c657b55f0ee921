"""All that a machine with a GPU measures in one run."""
