"""Languages, stable prefixes, joining of pieces. Pure."""
