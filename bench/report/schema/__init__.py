"""The fields that a results file needs for a report to show it: a dataclass for each kind of document."""
