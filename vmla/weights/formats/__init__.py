"""Other people's files of weights: found, opened without running code, and read tensor by tensor."""
