"""What a photo is: the label scheme, safe opening, the tables, the packed pixel array."""
