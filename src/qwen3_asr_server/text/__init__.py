"""Text without audio: languages, prompts, stable prefixes, joining of pieces, what a model must not say. Pure."""
