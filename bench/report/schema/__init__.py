"""What a results file must say for a report to show it: a dataclass for each kind of document."""
