"""Properties of units are about values; how fast a busy machine is says nothing."""

from hypothesis import settings

settings.register_profile("unit", deadline=None)
settings.load_profile("unit")
