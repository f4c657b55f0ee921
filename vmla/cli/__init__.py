"""What all commands and records share: errors in one line, progress, the machine."""
