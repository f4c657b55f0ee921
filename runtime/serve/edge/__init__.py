"""What every request passes: settings, access, errors, figures, logs."""
