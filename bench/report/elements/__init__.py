"""What a report is put together from: tables, media, a filter."""
