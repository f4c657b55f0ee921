"""Work on more than one machine, by Ray (extra `ray`)."""
