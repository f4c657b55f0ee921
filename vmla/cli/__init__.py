"""Shared by all commands and records: errors in one line, progress, the machine."""
