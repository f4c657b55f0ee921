"""What a finished sprite video shows, found by formula and held against its prompt."""
