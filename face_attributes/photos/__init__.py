"""Photos: the label scheme, label edits, tables, safe opening, the packed pixel array."""
