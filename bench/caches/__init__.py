"""The same video with its cache kept in several forms: what each takes, costs and changes."""
