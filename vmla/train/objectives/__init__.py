"""What is minimised: teacher forcing, self forcing, consistency and distribution matching."""
