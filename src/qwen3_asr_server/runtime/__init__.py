"""The asyncio layer: it owns every task, queue and deadline."""
