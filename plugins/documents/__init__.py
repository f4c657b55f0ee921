"""The one way to read a file that somebody else may have written: JSON, YAML, headers of safetensors."""
