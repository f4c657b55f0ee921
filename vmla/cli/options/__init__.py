"""Options that several commands have, and what their values are: names, devices, numbers, a file."""
