"""Realtime speech recognition behind the DashScope Qwen-ASR wire protocol.

Importing the package imports nothing else: no web framework, no model library.
"""

__version__ = "0.1.0"
