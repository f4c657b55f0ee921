"""Models trained or converted in several ways, and compared."""
