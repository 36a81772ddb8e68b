"""The wire protocols: every module here without a leading underscore is one, found by its name."""
