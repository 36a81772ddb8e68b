"""Start the server; the same as `qwen3-asr-server serve`."""

from qwen3_asr_server.cli import main

if __name__ == "__main__":  # an engine's child processes import this file again
    main()
