"""The documentation's site: drawings, the reference of commands, the repository's own pages in it."""
