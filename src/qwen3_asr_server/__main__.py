"""`python -m qwen3_asr_server`: the same as the command `qwen3-asr-server`."""

from qwen3_asr_server.cli import main

if __name__ == "__main__":
    main()
