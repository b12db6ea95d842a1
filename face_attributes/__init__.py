"""Face attributes (mask, gender, age group) from photos: what stages and commands share."""
