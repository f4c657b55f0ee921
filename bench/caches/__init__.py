"""The same video with its cache kept in several forms: memory, time and differences of each."""
