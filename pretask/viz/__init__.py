"""Contact sheets, charts and self-contained pages."""
