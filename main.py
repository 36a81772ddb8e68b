"""Start the server; the same as `qwen3-asr-server serve`."""

from qwen3_asr_server.cli import main

main()
