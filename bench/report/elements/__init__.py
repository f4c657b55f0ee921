"""The parts of a report's page: tables, plots, media, a filter."""
