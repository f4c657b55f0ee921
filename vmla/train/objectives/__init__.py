"""The losses: teacher forcing, self forcing, consistency and distribution matching."""
