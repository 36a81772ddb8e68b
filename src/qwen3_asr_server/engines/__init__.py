"""The recognisers: every module here without a leading underscore is one, found by its name."""
