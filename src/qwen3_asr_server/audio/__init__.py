"""Audio as numpy arrays: bytes in, float32 at 16 kHz out. Pure."""
